"""Texts in pieces: words and sentences with their places, and what must never be touched.

Protected are control tokens and other marks in angle brackets, placeholders such as ``[NAME]`` and ``{city}``, code between backticks,
addresses of pages and mail, mentions.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_HAS_HAN = re.compile(f"[{HAN}]")
PROTECTED = re.compile(
    r"```.*?(?:```|$)|`[^`\n]+`|<[^<>\s][^<>]{0,60}>|\[[A-Z0-9_]{2,40}\]|\{[^{}\n]{1,40}\}"
    r"|\b(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?<!\w)@\w+",
    re.DOTALL,
)
CONTROL = re.compile(r"<[^<>\s][^<>]{0,60}>|\[[A-Z0-9_]{2,40}\]|\{[^{}\n]{1,40}\}")
_WORD = re.compile(rf"[{HAN}]+|[^\W_{HAN}]+(?:['’-][^\W\d_{HAN}]+)*")
_ASKS = re.compile(
    r"^\W*(?:(?:and|so|but|oh|well|hey)\b\W*)*(?:what|whats|when|where|who|whose|why|how|which|do|does|did|is|are|was|were|can|could|"
    r"would|will|should|have|has|any)\b|[吗呢][。！]?\s*$|什么|怎么|为何|谁|哪|多少|几[个点时岁]", re.IGNORECASE,
)  # fmt: skip
_SENTENCE_END = re.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？…]+[”’）」』]*|\n)\s*")

# Words whose absence turns a sentence into its opposite.
TURNING = frozenset(
    """not no never none nothing nobody neither nor without don't doesn't didn't won't wouldn't can't cannot couldn't shouldn't isn't
    aren't wasn't weren't haven't hasn't hadn't n't 不 没 没有 别 未 无 非 不要 不是 不能 不会 不用""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Word:
    """A word and its place in the text: ``text[start:end]``."""

    text: str
    start: int
    end: int

    @property
    def key(self) -> str:
        """The word as it is looked up."""
        return self.text.lower().replace("’", "'")

    @property
    def han(self) -> bool:
        """Whether it is written in Han characters."""
        return _HAS_HAN.match(self.text) is not None


def words(text: str) -> list[Word]:
    """The words of a text that may be rewritten: runs of letters and digits, Chinese ones as rjieba cuts them; nothing protected."""
    taken = [found.span() for found in PROTECTED.finditer(text)]
    starts = [start for start, _ in taken]
    found: list[Word] = []
    for match in _WORD.finditer(text):
        place = bisect_right(starts, match.start()) - 1
        following = taken[place + 1][0] if place + 1 < len(taken) else len(text)
        if (place < 0 or taken[place][1] <= match.start()) and match.end() <= following:
            found += _cut(match) if _HAS_HAN.match(match[0]) else [Word(match[0], *match.span())]
    return found


def replaced(text: str, changes: Mapping[Word, str]) -> str:
    """`text` with each word of `changes` replaced. Where a word goes, the space before it goes too."""
    for word in sorted(changes, key=lambda own: own.start, reverse=True):
        new, start, end = changes[word], word.start, word.end
        if not new:
            while start > 0 and text[start - 1] in " \t":
                start -= 1
            if start == 0:
                while end < len(text) and text[end] in " \t":
                    end += 1
        text = text[:start] + new + text[end:]
    return text


def like(new: str, old: str) -> str:
    """`new` with the capitals of `old`: none, the first, or all."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() and not old[1:].isupper() else new


def sentences(text: str) -> list[str]:
    """The sentences of a text with the white space behind each; joined they are the text."""
    taken = [found.span() for found in PROTECTED.finditer(text)]
    found, begin = [], 0
    for match in _SENTENCE_END.finditer(text):
        inside = any(start < match.end() and match.start() < end and match.start() > start for start, end in taken)
        if not inside and text[begin : match.end()].strip():
            found.append(text[begin : match.end()])
            begin = match.end()
    return [*found, text[begin:]] if text[begin:].strip() else [*found[:-1], found[-1] + text[begin:]] if found else [text]


def joined(pieces: Sequence[str], text: str) -> str:
    """Sentences put together again, with a space between two that have none and are not Chinese."""
    whole = ""
    for piece in pieces:
        needs = whole and not whole[-1].isspace() and not _HAS_HAN.search(whole[-2:]) and whole[-1] not in "。！？…”’）」』"
        whole += f" {piece}" if needs else piece
    return whole.strip() if text.strip() == text else whole


def question(sentence: str) -> bool:
    """Whether a sentence asks something: by its mark, its first word, or a Chinese word of asking."""
    return sentence.rstrip().endswith(("?", "？")) or _ASKS.search(sentence) is not None


def chosen(count: int, rate: float, random: np.random.Generator) -> list[int]:
    """Which of `count` things, each with the probability `rate` and independently of the others."""
    hit: list[int] = np.flatnonzero(random.random(count) < rate).tolist()
    return hit


def one_of(values: Sequence[str], random: np.random.Generator) -> str:
    """One of them, each equally likely."""
    return values[int(random.integers(len(values)))]


def chinese(text: str) -> bool:
    """Whether a text holds Han characters."""
    return _HAS_HAN.search(text) is not None


def word_changer(
    rate: float, random: np.random.Generator, others: Callable[[Word, Sequence[Word], int], Sequence[str]]
) -> Callable[[str], str]:
    """The function that replaces, in a text, each word that has `others` with the probability `rate` by one of them.

    `others` is given the word, all words of the text, and the word's place among them.
    """

    def change(text: str) -> str:
        own = words(text)
        can = [(word, found) for place, word in enumerate(own) if (found := others(word, own, place))]
        some = [can[hit] for hit in chosen(len(can), rate, random)]
        return replaced(text, {word: like(one_of(found, random), word.text) for word, found in some})

    return change


def _cut(match: re.Match[str]) -> Iterator[Word]:
    import rjieba

    place = match.start()
    for piece in rjieba.cut(match[0]):
        yield Word(piece, place, place + len(piece))
        place += len(piece)
