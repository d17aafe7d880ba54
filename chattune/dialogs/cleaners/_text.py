"""What cleaners share: code that is left alone, rewriting until nothing changes any more, and sets of characters."""

from __future__ import annotations

import re
from collections.abc import Callable

HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
URL = re.compile(r"(?:https?|ftp)://[^\s<>\"'，。；）】》]{1,2000}|\bwww\.[^\s<>\"'，。；）】》]{1,2000}", re.I)
_CODE = re.compile(r"(?P<fence>`{3,}).*?(?:(?P=fence)|\Z)|`[^`\n]+`", re.S)
_ROUNDS = 8
# Pictures, their skin tones, and the mark that asks for a picture: what an emoji is made of but for joiners.
PICTURES = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299"
    "\ufe0f\U0001f000-\U0001faff"
)
EMOJI = re.compile(f"[{PICTURES}]")


def outside_code(text: str, rewrite: Callable[[str], str]) -> str:
    """`text` with everything rewritten but what stands in backticks, one or a fence of three."""
    if "`" not in text:
        return rewrite(text)
    pieces, last = [], 0
    for code in _CODE.finditer(text):
        pieces += [rewrite(text[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*pieces, rewrite(text[last:])])


def without_code(text: str) -> str:
    """`text` with a space in place of each piece of code."""
    return _CODE.sub(" ", text) if "`" in text else text


def settled(rewrite: Callable[[str], str], text: str) -> str:
    """`text` rewritten until it stays as it is, so that cleaning twice gives what cleaning once gives.

    A text that does not settle within eight rounds is left as it was.
    """
    before = text
    for _ in range(_ROUNDS):
        after = rewrite(before)
        if after == before:
            return after
        before = after
    return text


def words(text: str) -> tuple[str, ...]:
    """The words of a list that is written as one text."""
    return tuple(text.split())
