"""Slips of fingers and of input methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Working, rewritten
from chattune.dialogs.dialog import Dialog

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class Typos(Augmentation):
    """Give words one typo each. In letters: a neighbour on the keyboard, a letter doubled, left out, or two that change places.

    In Chinese: a character of the same sound (by pypinyin, among the characters of the training split), or one of the same shape where
    a file says which are: lines of a character and those that it is taken for, as in pycorrector's list of strokes.
    Helps when: users type; data were written with care.
    Hurts when: names and codes must be copied letter by letter.
    Cost: 10 µs a word; pypinyin is loaded in 0.3 s where the data hold Chinese.   Start with: 0.05.
    Source: Belinkov & Bisk 2018, arXiv:1711.02173; confusion sets as in SIGHAN's spelling tasks (Wu et al. 2013).
    """

    rate: float = setting(
        0.05, "share of the words of at least two letters, and Chinese ones, that get a typo", low=0.0, high=1.0, search=(0.02, 0.2)
    )
    shapes: str | None = setting(None, "a file of lines: a character, then those that look like it, tabs between; none: sounds only")

    def files(self) -> Iterable[Path]:
        from chattune.core.errors import DataError

        if self.shapes is None:
            return ()
        path = Path(self.shapes).expanduser()
        if not path.is_file():
            raise DataError("does not exist.", path=str(path), rule="a file of characters that look alike")
        return (path,)

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.dialogs.augmentations._text import chinese

        counts: Counter[str] = Counter()
        for dialog in dialogs:
            for message in dialog.messages:
                if chinese(message.content):
                    counts.update(filter(chinese, message.content))
        alike: dict[str, tuple[str, ...]] = _sounds(counts) if counts else {}
        for path in self.files():
            for line in path.read_text("utf-8-sig").splitlines():
                first, *others = line.split() or [""]
                if others and not first.startswith("#"):
                    alike[first] = tuple(dict.fromkeys([*alike.get(first, ()), *"".join(others)]))
        return _Slipping(self, alike)


@dataclass(frozen=True)
class _Slipping(Working):
    """`alike`: the characters that a Chinese one is taken for."""

    part: Typos
    alike: dict[str, tuple[str, ...]]

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import Word, chosen, replaced, words

        def slipped(word: Word) -> str:
            if word.han:
                places = [place for place, character in enumerate(word.text) if character in self.alike]
                place = places[int(random.integers(len(places)))]
                others = self.alike[word.text[place]]
                return word.text[:place] + others[int(random.integers(len(others)))] + word.text[place + 1 :]
            return _mistyped(word.text, random)

        def typed(text: str) -> str:
            can = [word for word in words(text) if (any(c in self.alike for c in word.text) if word.han else _typeable(word.text))]
            return replaced(text, {can[hit]: slipped(can[hit]) for hit in chosen(len(can), self.part.rate, random)})

        return rewritten(dialog, self.part.roles, typed)


def _typeable(word: str) -> bool:
    return len(word) > 1 and word.isascii() and word.isalpha()


def _mistyped(word: str, random: np.random.Generator) -> str:
    """One slip; the first letter stays where the word is long enough, as in most real ones."""
    first = 1 if len(word) > 2 else 0
    place = int(random.integers(first, len(word)))
    swaps = [n for n in range(first, len(word) - 1) if word[n] != word[n + 1]]
    kind = int(random.integers(4))
    if kind == 0 and swaps:
        n = swaps[int(random.integers(len(swaps)))]
        return word[:n] + word[n + 1] + word[n] + word[n + 2 :]
    if kind == 1 and len(word) > 2:
        return word[:place] + word[place + 1 :]
    if kind == 2:
        return word[: place + 1] + word[place] + word[place + 1 :]
    near = _neighbours(word[place].lower())
    new = near[int(random.integers(len(near)))]
    return word[:place] + (new.upper() if word[place].isupper() else new) + word[place + 1 :]


def _neighbours(letter: str) -> str:
    """Keys next to that of a letter: left and right in its row, the two above and below."""
    row = next(number for number, own in enumerate(_ROWS) if letter in own)
    column = _ROWS[row].index(letter)
    near = [(row, column - 1), (row, column + 1), (row - 1, column), (row - 1, column + 1), (row + 1, column - 1), (row + 1, column)]
    return "".join(_ROWS[r][c] for r, c in near if 0 <= r < 3 and 0 <= c < len(_ROWS[r]))


def _sounds(counts: Counter[str]) -> dict[str, tuple[str, ...]]:
    """For each character the others of its sound without the tone, at most eight, the common ones first."""
    from pypinyin import Style, pinyin

    groups: dict[str, list[str]] = {}
    for character in sorted(counts, key=lambda own: (-counts[own], own)):
        groups.setdefault(pinyin(character, style=Style.NORMAL)[0][0], []).append(character)
    return {own: tuple(other for other in group if other != own)[:8] for group in groups.values() if len(group) > 1 for own in group}
