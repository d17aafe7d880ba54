"""Spelling: English words by edit distance and frequency, Chinese characters by confusion sets and the words that they would make."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from chattune.core.errors import DataError, SettingError
from chattune.dialogs.dialog import Drop
from chattune.dialogs.text import lines, reading

_LINE = 1 << 16
_HAN = "\u3400-\u9fff"
_RUN = re.compile(f"[{_HAN}]{{2,80}}")
_WORD = re.compile(r"(?<![\w'’@#/\\.&=-])[A-Za-z]{2,30}(?:['’][A-Za-z]{1,3})?(?![\w@/\\=-]|\.\w|['’]\w|://)")
_SENTENCE_END = re.compile(r"(?:^|[.!?:\n。！？][\"'”’)\]]{0,2})\s*$")
_TOTAL = 60_101_967  # sum of the frequencies of jieba's dictionary
_LONGEST = 4  # characters of a Chinese word
_RULE = "a character and, after a tab, those that it is confused with"


class English:
    """Corrects words that the dictionary does not know to the one that it surely means."""

    def __init__(self, known: frozenset[str], distance: int, least_length: int, ratio: float) -> None:
        self._known, self._distance, self._least, self._ratio = known, distance, least_length, ratio

    def __call__(self, text: str) -> str:
        return _WORD.sub(lambda found: self._corrected(found), text)

    def _corrected(self, found: re.Match[str]) -> str:
        word = found[0].replace("’", "'")
        lowered = word.lower()
        before = found.string[max(0, found.start() - 4) : found.start()]
        if word != lowered and (word[1:] != lowered[1:] or not _SENTENCE_END.search(before)):
            return found[0]  # an abbreviation, or a name
        if lowered in self._known or "'" in word:
            return found[0]
        better = _meant(lowered, self._distance, self._least, self._ratio)
        if better is None:
            return found[0]
        return better.capitalize() if word[0].isupper() else better


@cache
def _meant(word: str, distance: int, least: int, ratio: float) -> str | None:
    """The word that an unknown one stands for: it begins alike, is usual, and is so many times as usual as the next."""
    from symspellpy import Verbosity

    dictionary = english_dictionary(distance)
    if word in dictionary.words or re.search(r"(.)\1\1", word):
        return None
    found = dictionary.lookup(word, Verbosity.CLOSEST, max_edit_distance=distance)
    for one in found:
        if "'" in one.term and one.term.replace("'", "") == word and len(word) >= 4:
            return str(one.term)
    found = [one for one in found if one.term[0] == word[0] and "'" not in one.term]
    if found and (_american(found[0].term) == _american(word) or _same_stem(found[0].term, word)):
        return None
    if len(word) < least or not found or found[0].count < _USUAL or (found[0].distance > 1 and len(word) < 2 * least - 2):
        return None
    return str(found[0].term) if len(found) == 1 or found[0].count >= ratio * found[1].count else None


# British spellings, of which the dictionary is full, and the American ones that it lacks.
_SPELLINGS = tuple(
    (re.compile(british), american)
    for british, american in (
        ("our", "or"), ("ctis", "ctic"), ("is(?=e|ing|ation)", "iz"), ("ys(?=e|ing)", "yz"), ("re(?=s?$)", "er"), ("ll", "l"),
        ("tred$", "tered"), ("tring$", "tering"), ("enc(?=es?$)", "ens"), ("ogue", "og"), ("ae|oe", "e"), ("artef", "artif"),
        ("gey", "gay"), ("mme(?=s?$)", "m"),
    )
)  # fmt: skip


def _american(word: str) -> str:
    """A key that spellings of the two sides of the Atlantic share."""
    for british, american in _SPELLINGS:
        word = british.sub(american, word)
    return word


def _same_stem(one: str, other: str) -> bool:
    """Whether two words differ in their last letter only, a plural's left out: influencer and influence, layed and layer."""
    one, other = one.rstrip("s"), other.rstrip("s")
    short = min(len(one), len(other))
    return one[: short - (len(one) == len(other))] == other[: short - (len(one) == len(other))]


_USUAL = 500_000  # occurrences in the corpus of the dictionary (10¹² words)


@cache
def english_dictionary(distance: int) -> Any:
    """symspellpy with the dictionary that it brings."""
    try:
        from importlib.resources import as_file, files

        from symspellpy import SymSpell
    except ModuleNotFoundError as error:
        raise SettingError(
            f"the package {error.name} is not installed.", path="spelling.english", value=True, rule="an installed symspellpy",
            hint="Run `pip install 'chattune[spell]'`, or set english: false.",
        ) from None
    dictionary = SymSpell(max_dictionary_edit_distance=distance, prefix_length=7)
    with as_file(files("symspellpy") / "frequency_dictionary_en_82_765.txt") as path:
        dictionary.load_dictionary(str(path), term_index=0, count_index=1)
    return dictionary


class Chinese:
    """Corrects a character that stands alone where one that is often confused with it would make a word of its neighbours."""

    def __init__(self, confused: Mapping[str, str], margin: float, known: frozenset[str]) -> None:
        """`confused`: character → characters that it is written for; `margin`: nats by which the new reading must be likelier."""
        self._confused, self._margin, self._known = confused, margin, known

    def __call__(self, text: str) -> str:
        return _RUN.sub(lambda found: self._corrected(found[0]), text)

    def _corrected(self, run: str) -> str:
        import rjieba

        tokens = rjieba.cut(run, False)
        starts = [0]
        for token in tokens:
            starts.append(starts[-1] + len(token))
        best: tuple[float, int, int, str] | None = None
        for number, token in enumerate(tokens):
            if len(token) == 1:
                for gain, begin, end, word in self._readings(run, tokens, starts, number):
                    if gain >= self._margin and (best is None or gain > best[0]):
                        best = (gain, begin, end, word)
        if best is None:
            return run
        _, begin, end, word = best
        return self._corrected(run[:begin] + word + run[end:])

    def _readings(
        self, run: str, tokens: Sequence[str], starts: Sequence[int], number: int
    ) -> Iterator[tuple[float, int, int, str]]:
        """Words that a change of this one character would make of it and the tokens around it."""
        import rjieba

        place = starts[number]
        for first in range(number, max(-1, number - _LONGEST), -1):
            for last in range(number, len(tokens)):
                begin, end = starts[first], starts[last + 1]
                if end - begin > _LONGEST:
                    break
                if end - begin < 2 or run[begin:end] in self._known:
                    continue
                before = sum(map(_likelihood, tokens[first : last + 1]))
                for other in self._confused.get(run[place], ""):
                    word = run[begin:place] + other + run[place + 1 : end]
                    if rjieba.has_word(word):
                        yield _likelihood(word) - before, begin, end, word


@cache
def _likelihood(word: str) -> float:
    """Log-probability of a word by jieba's dictionary; one that it does not know counts as seen once."""
    import rjieba

    return math.log((rjieba.suggest_freq(word) if rjieba.has_word(word) else 1) / _TOTAL)


def confusions(names: Sequence[str]) -> dict[str, str]:
    """Character → characters that are confused with it, of files with one set a line.

    Either ``字<tab>同音<tab>异调``, a character and those that it is confused with; or characters one by one, all confused with
    one another.
    """
    found: dict[str, dict[str, None]] = {}
    for name in names:
        _require(name, "confusions")
        count = 0
        with reading(Path(name)) as file:
            for item in lines(file, _LINE, name):
                if isinstance(item, Drop) or item[1].startswith("#") or not item[1].strip():
                    continue
                fields = item[1].split("\t")
                others = "".join(fields[1:]).replace(" ", "")
                if len(fields[0].strip()) != 1:
                    raise DataError(
                        "does not begin with one character.", path=f"{name}:{item[0]}", value=item[1][:40], rule=_RULE
                    )
                count += 1
                alone = all(len(field.strip()) == 1 for field in fields)
                members = [fields[0].strip(), *others]
                for one in members if alone else members[:1]:
                    found.setdefault(one, {}).update(dict.fromkeys(other for other in members if other != one))
                for other in members[1:]:
                    found.setdefault(other, {}).setdefault(members[0], None)
        if not count:
            raise DataError("holds no confusion set.", path=name, rule=_RULE)
    return {one: "".join(others) for one, others in found.items()}


def words_of(names: Sequence[str]) -> frozenset[str]:
    """Words of files with one a line, in small letters."""
    found: set[str] = set()
    for name in names:
        _require(name, "words")
        with reading(Path(name)) as file:
            found |= {item[1].strip().lower() for item in lines(file, _LINE, name) if not isinstance(item, Drop)}
    return frozenset(found)


def _require(name: str, setting: str) -> None:
    if not Path(name).is_file():
        raise DataError(
            "does not exist." if not Path(name).exists() else "is no file.", path=name, rule="a text file",
            hint=f"Check {setting} of the cleaner spelling.",
        )
