"""A convolutional classifier over word embeddings. The network is in `features/_text_cnn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.features.classifiers import Classifier, checked

if TYPE_CHECKING:
    from chattune.features.fitted import FittedClassifier


class TextCNN(Classifier):
    """A text as a matrix, a row for each word: filters over a few neighbouring rows, each one's largest answer kept, then softmax.

    Helps when: phrases decide, wherever they stand; thousands of examples.
    Hurts when: examples are few (softmax regression is better then), or far-apart words decide together.
    Cost: a minute for 10,000 short texts on one core.   Start with: the defaults; more dropout for few data.
    Source: Kim 2014, arXiv:1408.5882, with word vectors learnt here (his CNN-rand).
    """

    width: int = setting(128, "numbers that stand for a word", low=1, high=4096)
    filters: int = setting(128, "filters of each span", low=1, high=4096)
    spans: tuple[int, ...] = setting((2, 3, 4), "words that a filter sees at once, one group of filters for each")
    drop: float = setting(0.5, "share of the answers set to zero in training", low=0.0, below=1.0, search=(0.2, 0.7))
    unknown: float = setting(0.02, "share of words that training takes for unknown, so that unknown ones are learnt", low=0.0, high=0.5)
    epochs: int = setting(12, "passes over the examples", low=1, high=1000)
    batch: int = setting(64, "texts of one update", low=1, high=65536)
    lr: float = setting(2e-3, "peak rate of AdamW, falling to zero along a cosine", above=0.0, high=1.0, log=True)
    weight_decay: float = setting(0.01, "AdamW's decoupled decay", low=0.0, high=10.0)
    minimum_count: int = setting(1, "times that a word must occur to be known", low=1, high=1_000_000)

    def fitted(self) -> type[FittedClassifier]:
        from chattune.features._text_cnn import FittedTextCNN

        return FittedTextCNN

    def fit(self, texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> FittedClassifier:
        from chattune.features._text_cnn import fit

        return fit(self, texts, labels, checked(texts, labels), seed)
