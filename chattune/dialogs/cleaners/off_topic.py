"""Dialogs about something else."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from chattune.core.errors import DataError
from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, Cleaning, dropped
from chattune.dialogs.dialog import Dialog, Drop

if TYPE_CHECKING:
    from chattune.dialogs._offensive import Words
    from chattune.features.fitted import FittedClassifier

_LEARNT, _SAMPLE = 10_000, 4000  # dialogs at the most that the embedding is learnt from, and that the others are compared with
_COMPANY = 0.5  # share of the sample that a dialog is to be near to: strays that are alike must not find enough of their own kind
_LEAST = 20  # dialogs; fewer have no topic in common
_READ = 4000  # characters of a dialog
_TOGETHER = 1024
_OFF, _ON = "off", "on"


class OffTopic(Cleaner):
    """Leave out dialogs that are about something else, as labelled examples say, or that are unlike all the others.

    With `examples`, texts of both kinds, a classifier says how probable it is that a dialog is off the topic. Without, a dialog is as
    near as the nearer half of a sample of all dialogs, by the cosine of embeddings learnt from them, and one that is much less near
    than usual goes: this drops little that is right and finds stray comments where all others are much alike, but elsewhere nothing. A
    dialog that holds one of `words` stays in any case: the rule for what says little and belongs to the topic all the same.
    Helps when: a dump of one service holds other channels, small talk, tests or spam.
    Hurts when: the dialogs have no topic in common (open chat), or are of a few words: look at the counts before it is trusted.
    Cost: 2 ms a dialog, and seconds to learn.   Start with: 60 examples on the topic and 30 off it, which tell nearly all; without
    them 3 deviations, which drops little that is right (RESULTS.md).
    Source: multinomial logistic regression; distance to the nearest neighbours, Ramaswamy et al. 2000; the limit by median and median
    absolute deviation, Rousseeuw & Croux 1993.
    """

    looks_at_all: ClassVar[bool] = True

    examples: tuple[str, ...] = setting(
        (), "tables (CSV, TSV, JSON Lines) with a column of texts and one of labels; none: the dialogs alone say what is usual"
    )
    text_column: str = setting("text", "the column of texts; letter case does not matter")
    label_column: str = setting("label", "the column of labels; letter case does not matter")
    off_labels: tuple[str, ...] = setting(
        ("off", "off_topic", "irrelevant", "noise", "0", "false", "no"), "labels that mean off the topic"
    )
    threshold: float = setting(
        0.5, "with examples: probability from which a dialog is off the topic", above=0.0, below=1.0, search=(0.3, 0.9)
    )
    deviations: float = setting(
        3.0, "without: robust standard deviations below the middle from which a dialog is off the topic", above=0.0, search=(2.0, 4.0)
    )
    words: tuple[str, ...] = setting((), "files of words or phrases, one a line: a dialog that holds one of them stays")
    seed: int = setting(0, "of the sample and the embedding", low=0)

    def files(self) -> tuple[Path, ...]:
        return tuple(map(Path, (*self.examples, *self.words)))

    def begin(self, dialogs: Collection[Dialog]) -> Cleaning:
        from chattune.dialogs._offensive import Words

        listed = Words(self.words)
        return _Learnt(self.threshold, *self._classifier(), listed) if self.examples else self._unlike(dialogs, listed)

    def _classifier(self) -> tuple[FittedClassifier, float]:
        from chattune.dialogs.labelled import labelled
        from chattune.features.classifiers.softmax_regression import SoftmaxRegression

        off = {label.strip().lower() for label in self.off_labels}
        rows = [row for name in self.examples for row in labelled(name, self.text_column, self.label_column)]
        labels = [_OFF if label.strip().lower() in off else _ON for _, label in rows]
        if not {_OFF, _ON} <= set(labels):
            raise DataError(
                f"{labels.count(_ON)} examples are on the topic and {labels.count(_OFF)} off it.", path=", ".join(self.examples),
                rule="examples of both kinds", hint="Add the others, or say what their labels are: off_topic.off_labels=[…].",
            )
        odds = labels.count(_ON) / labels.count(_OFF)  # what examples there are says nothing of how many dialogs are off the topic
        return SoftmaxRegression(l2=1e-4).fit([text for text, _ in rows], labels), odds

    def _unlike(self, dialogs: Collection[Dialog], listed: Words) -> _Unlike:
        import numpy as np

        from chattune.core.seeds import generator
        from chattune.features.company import Company, least_usual
        from chattune.features.embedding import fit

        count = len(dialogs)
        if count < _LEAST:
            raise DataError(
                f"{count} dialogs are too few to tell what they are about.", path="clean.cleaners.off_topic", value=count,
                rule=f"at least {_LEAST} dialogs, or examples", hint="Leave off_topic out, or name examples.",
            )
        drawn = set(generator(self.seed, "off_topic").permutation(count)[:_LEARNT].tolist())
        known = [_said(dialog) for number, dialog in enumerate(dialogs) if number in drawn]
        embedding = fit(known, seed=self.seed)
        compared = known[:: -(-len(known) // _SAMPLE)]
        company = Company(embedding.encode(compared), round(_COMPANY * len(compared)))
        least = least_usual(company.own(), self.deviations)
        far: dict[str, float] = {}
        waiting = iter(dialogs)
        while some := [*islice(waiting, _TOGETHER)]:
            nearness = company.nearness(embedding.encode([_said(dialog) for dialog in some]))
            for place in np.flatnonzero(nearness < least).tolist():
                if not _listed(some[place], listed):
                    far[some[place].id] = float(nearness[place])
        return _Unlike(least, far)


@dataclass(frozen=True)
class _Learnt:
    """`odds`: examples on the topic for each one off it, by which the classifier's odds are multiplied, as if there were as many."""

    threshold: float
    learnt: FittedClassifier
    odds: float
    listed: Words

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        off = float(self.learnt.probabilities([_said(dialog)])[0, self.learnt.labels.index(_OFF)])
        chance = off * self.odds / (off * self.odds + 1 - off)
        if chance < self.threshold or _listed(dialog, self.listed):
            return dialog
        return dropped(dialog, "off_topic", f"with a probability of {chance:.2f}")


@dataclass(frozen=True)
class _Unlike:
    """`far`: the id of a dialog that goes, and how near it is to others; `least` is what is usual at the least."""

    least: float
    far: dict[str, float]

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        nearness = self.far.get(dialog.id)
        if nearness is None:
            return dialog
        return dropped(dialog, "off_topic", f"as near as {nearness:.3f} to the rest, where {self.least:.3f} is the least that is usual")


def _said(dialog: Dialog) -> str:
    return "\n".join(message.content for message in dialog.messages if message.role in ("user", "assistant"))[:_READ]


def _listed(dialog: Dialog, listed: Words) -> bool:
    return any(listed.count(message.content) for message in dialog.messages)
