"""What counts as a word when replies are compared: declared, and decided by the text rather than guessed by a reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal

Words = Callable[[str], list[str]]
Choice = Literal["auto", "words", "jieba", "characters"]

_HAN = r"\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_HAN_CHARACTER = re.compile(f"[{_HAN}]")
_OTHER_WORD = re.compile(rf"[^\W_\d{_HAN}]+")
_WORD = re.compile(r"[^\W_]+")
_WORD_OR_MARKS = re.compile(r"[^\W_]+|(\S)\1*")


def is_chinese(texts: Iterable[str]) -> bool:
    """True when the texts hold more Han characters than words in other letters."""
    han = other = 0
    for text in texts:
        han += len(_HAN_CHARACTER.findall(text))
        other += len(_OTHER_WORD.findall(text))
    return han > other


def chosen(choice: Choice, texts: Iterable[str]) -> Choice:
    """``"auto"`` becomes ``"jieba"`` for mostly Chinese texts and ``"words"`` otherwise."""
    if choice != "auto":
        return choice
    return "jieba" if is_chinese(texts) else "words"


def splitter(choice: Choice) -> Words:
    """The function from a text to its words, in lower case and without punctuation.

    ``"words"``: runs of letters and digits; for ASCII text exactly what rouge-score does without stemming.
    ``"jieba"``: words of the jieba dictionary (rjieba). ``"characters"``: each letter or digit.
    """
    return {"characters": _characters, "jieba": _jieba}.get(choice, _runs)  # named functions, so that what holds them can be pickled


def with_marks(choice: Choice) -> Words:
    """Like `splitter`, with punctuation kept; a run of one mark (``...``) is one word."""
    return _jieba_and_marks if choice == "jieba" else _runs_and_marks


def _characters(text: str) -> list[str]:
    return [letter for word in _WORD.findall(text.lower()) for letter in word]


def _runs(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs_and_marks(text: str) -> list[str]:
    return [found.group() for found in _WORD_OR_MARKS.finditer(text.lower())]


def _jieba_and_marks(text: str) -> list[str]:
    return [word for found in _WORD_OR_MARKS.finditer(text.lower()) for word in (_jieba(found.group()) or [found.group()])]


def _jieba(text: str) -> list[str]:
    import rjieba

    return [word for piece in rjieba.cut(text.lower()) for word in _WORD.findall(piece)]
