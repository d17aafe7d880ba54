"""A linear classifier over words and pairs of words. The computation is in `features/_softmax_regression`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.features.classifiers import Classifier, checked

if TYPE_CHECKING:
    from chattune.features.fitted import FittedClassifier


class SoftmaxRegression(Classifier):
    """Multinomial logistic regression over tf-idf weighted words and pairs of neighbouring words.

    Helps when: always the first thing to try; few examples; a reason is wanted (a weight for each word and label).
    Hurts when: word order beyond neighbours decides, as with negation at a distance.
    Cost: seconds; the loss is convex, so there is one answer whatever the seed.   Start with: l2 1e-5; more for few examples.
    Source: Bishop 2006, section 4.3.4; sublinear tf-idf as in Manning et al. 2008, section 6.4.
    """

    l2: float = setting(
        1e-5, "half of it times the squared weights is added to the mean loss; not for the biases", above=0.0, high=10.0, log=True
    )
    pairs: bool = setting(True, "count pairs of neighbouring words, too")
    minimum_count: int = setting(1, "times that a word must occur to count", low=1, high=1_000_000)
    steps: int = setting(200, "iterations of L-BFGS at most", low=1, high=100_000)

    def fitted(self) -> type[FittedClassifier]:
        from chattune.features._softmax_regression import FittedSoftmaxRegression

        return FittedSoftmaxRegression

    def fit(self, texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> FittedClassifier:
        from chattune.features._softmax_regression import fit

        return fit(self, texts, labels, checked(texts, labels))
