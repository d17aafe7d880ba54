"""LCCC: Chinese conversations from social media, a character a word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import is_json, kind_of
from chattune.dialogs.text import json_records, lines, reading, sample

_CHINESE = r"\u2e80-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\u2014\u2018-\u201d\u2026\U00020000-\U0003ffff"
_BETWEEN = re.compile(rf"(?<=[{_CHINESE}])[ \u3000]+(?=\S)|(?<=\S)[ \u3000]+(?=[{_CHINESE}])")
_HAN = re.compile(r"[\u3400-\u9fff]")
_SPACED = re.compile(r"[\u3400-\u9fff](?= |\t|$)", re.MULTILINE)
_PAIR = re.compile(r"[\u3400-\u9fff] (?=[\u3400-\u9fff])")


class LCCC(Reader):
    """A conversation a line, its turns parted by tabs, or JSON lists of turns; spaces between Chinese characters are taken out.

    Helps when: data is LCCC or a corpus of its shape, such as Douban or Weibo pairs.   Hurts when: spaces part words on purpose.
    Cost: one conversation in memory.   Start with: the defaults.
    Source: Wang et al. 2020, arXiv:2008.03946 (CDial-GPT). Who opens is the user, the two take turns. Spaces between words of other
    scripts stay.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        with reading(path, self.encoding) as file:
            json_ = is_json(file.read(4096))
            file.seek(0)
            for index, item in enumerate((json_records if json_ else lines)(file, self.record_limit, str(path))):
                if isinstance(item, Drop):
                    yield item
                    continue
                turns: Any = item[1] if json_ else item[1].split("\t")
                if turns == [""] or (not json_ and not item[1].strip()):
                    continue
                if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
                    yield Drop("wrong_type", str(path), item[0], f"{kind_of(turns)}, not a list of texts")
                    continue
                messages = tuple(Message(("user", "assistant")[place % 2], unspaced(turn)) for place, turn in enumerate(turns))
                yield Dialog(f"{path.name}#{index + 1}", messages, "lccc", str(path), item[0])

    def score(self, path: Path, head: str) -> float:
        if is_json(head):
            rows = [row for row, _ in sample(head)]
            if not rows or not all(isinstance(row, list) and row and all(isinstance(turn, str) for turn in row) for row in rows):
                return 0.0
            return 0.95 if _is_spaced("\n".join("\t".join(row) for row in rows)) else 0.0
        written = [line for line in head.splitlines()[:200] if line.strip()]
        several = sum("\t" in line for line in written)
        return round(0.95 * several / len(written), 3) if written and _is_spaced("\n".join(written)) else 0.0


def unspaced(text: str) -> str:
    """`text` without the spaces beside Chinese characters and their punctuation."""
    return _BETWEEN.sub("", text)


def _is_spaced(text: str) -> bool:
    """Whether nearly every Chinese character stands by itself, and most in a row of them: lists of characters are no sentences."""
    count = max(1, len(_HAN.findall(text)))
    return len(_SPACED.findall(text)) > 0.9 * count and len(_PAIR.findall(text)) > 0.4 * count
