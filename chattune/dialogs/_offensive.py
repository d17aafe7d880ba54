"""Judging offensive text: word lists read once, and a classifier fitted on the examples that the user names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chattune.core.errors import DataError
from chattune.dialogs.cleaners import dropped
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.labelled import labelled
from chattune.dialogs.near_duplicates import normalised
from chattune.dialogs.text import lines, reading

if TYPE_CHECKING:
    from chattune.dialogs.cleaners.offensive_text import OffensiveText
    from chattune.features.fitted import FittedClassifier

_HAN = re.compile(r"[\u3400-\u9fff]")
_LINE = 1 << 16
_MARKED, _CLEAR = "offensive", "clear"
_LISTED = "listedword"  # stands beside a text for each of its listed words, so that the classifier weighs lists, too


class Words:
    """Finds listed words and phrases in a text, compared in normal form."""

    def __init__(self, files: Sequence[str]) -> None:
        spaced, inside = set[str](), set[str]()
        for name in files:
            with reading(Path(name)) as file:
                for item in lines(file, _LINE, name):
                    if not isinstance(item, Drop) and (word := normalised(item[1])):
                        (inside if _HAN.search(word) else spaced).add(word)
        if files and not (spaced or inside):
            raise DataError("holds no word.", path=", ".join(files), rule="a word or a phrase on each line")
        found = [rf"(?<!\w)(?:{_either(spaced)})(?!\w)"] if spaced else []
        self._pattern = re.compile("|".join([*found, *([_either(inside)] if inside else [])]) or r"(?!)")

    def count(self, text: str) -> int:
        """How many listed words stand in the text."""
        return len(self._pattern.findall(normalised(text)))


@dataclass(frozen=True)
class Judge:
    """The cleaner at work: `listed` words, and what the examples taught, if there are any."""

    settings: OffensiveText
    listed: Words
    learnt: FittedClassifier | None

    def scores(self, texts: Sequence[str]) -> list[float]:
        """For each text a number from 0 to 1: the classifier's probability; without one, 1 where a listed word stands."""
        counts = [self.listed.count(text) for text in texts]
        if self.learnt is None or not texts:
            return [float(count > 0) for count in counts]
        place = self.learnt.labels.index(_MARKED)
        found: list[float] = self.learnt.probabilities([_told(*own) for own in zip(texts, counts, strict=True)])[:, place].tolist()
        return found

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        texts = [message.content for message in dialog.messages if message.role in self.settings.roles]
        scores = self.scores(texts)
        worst = max(scores, default=0.0)
        if worst < self.settings.threshold:
            return dialog
        many = sum(score >= self.settings.threshold for score in scores)
        return dropped(dialog, "offensive", f"{many} of {len(texts)} messages, the surest with {worst:.2f}")


def judge(settings: OffensiveText) -> Judge:
    """Read the lists, and learn from the examples."""
    listed = Words(settings.words)
    if not settings.examples:
        return Judge(settings, listed, None)
    texts, labels = [], []
    marked = {label.strip().lower() for label in settings.offensive_labels}
    for name in settings.examples:
        for text, label in labelled(name, settings.text_column, settings.label_column):
            texts.append(text)
            labels.append(_MARKED if label.strip().lower() in marked else _CLEAR)
    return Judge(settings, listed, learn(texts, labels, listed))


def learn(texts: Sequence[str], labels: Sequence[str], listed: Words) -> FittedClassifier:
    """A classifier of ``offensive`` and ``clear`` texts; beside its words it sees how many listed ones there are."""
    from chattune.features.classifiers.softmax_regression import SoftmaxRegression

    part = SoftmaxRegression(l2=1e-4)
    return part.fit([_told(text, listed.count(text)) for text in texts], list(labels))


def _told(text: str, count: int) -> str:
    return f"{text} {_LISTED * min(count, 3)}" if count else text


def _either(words: set[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))
