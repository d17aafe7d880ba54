"""Classifiers: from texts to labels, learnt from examples; for intents, topics, quality and the like.

`fit` gives a `FittedClassifier`, which knows nothing of where the examples came from and is saved without pickles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from chattune.core.errors import DataError
from chattune.core.part import Part, setting

if TYPE_CHECKING:
    from chattune.features.fitted import FittedClassifier


class Classifier(Part):
    """A way to learn labels of texts. Equal texts, labels and seed give equal weights on a processor."""

    words: Literal["auto", "words", "jieba", "characters"] = setting(
        "auto", "what a word is; auto: jieba's dictionary for mostly Chinese texts, runs of letters otherwise"
    )

    def fitted(self) -> type[FittedClassifier]:
        """The class of what `fit` gives, which reads a saved one."""
        raise NotImplementedError

    def fit(self, texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> FittedClassifier:
        """Learn from `texts` and, for each, its label. `DataError` where nothing can be learnt."""
        raise NotImplementedError


def checked(texts: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The different labels, sorted; `DataError` for examples that nothing can be learnt from."""
    if len(texts) != len(labels):
        raise DataError(f"{len(texts)} texts have {len(labels)} labels.", value=len(labels), rule="one label for each text")
    found = sorted(set(labels))
    if len(found) < 2:
        raise DataError(
            f"the examples have {len(found)} different labels.", value=found[:1], rule="at least two labels",
            hint="Bring examples of what is to be told apart.",
        )
    return found
