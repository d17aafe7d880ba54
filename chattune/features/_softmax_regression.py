"""Softmax regression on sparse rows: counts become tf-idf, L-BFGS finds the one minimum of a convex loss."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chattune.features.fitted import FittedClassifier, vocabulary_of

if TYPE_CHECKING:
    from chattune.features.classifiers.softmax_regression import SoftmaxRegression
    from chattune.features.words import Choice


class FittedSoftmaxRegression(FittedClassifier):
    """`matrix`: (terms, classes); `bias`: (classes,); `rarity`: (terms,) inverse document frequencies. Terms are words, then pairs.

    Pairs are kept as two word numbers, since a pair of known words needs no spelling of its own.
    """

    part: SoftmaxRegression

    def __init__(self, part: SoftmaxRegression, labels: Sequence[str], vocabulary: Sequence[str], words: Choice) -> None:
        super().__init__(part, labels, vocabulary, words)
        self._pairs: dict[tuple[int, int], int] = {}
        self.rarity = torch.zeros(0)
        self.matrix, self.bias = torch.zeros(0, len(self.labels)), torch.zeros(len(self.labels))

    def terms(self, text: str) -> list[int | tuple[int, int]]:
        """Word numbers, and pairs of neighbouring ones where the settings ask for them; words never seen are left out."""
        numbers = self.numbers(text)
        pairs = [(a, b) for a, b in itertools.pairwise(numbers) if a and b] if self.part.pairs else []
        return [*(number for number in numbers if number), *pairs]

    def learn_terms(self, texts: Sequence[str]) -> None:
        """Number the pairs that occur, and weigh every term by its rarity, ``ln((1 + texts) / (1 + texts with it)) + 1``."""
        found = Counter(term for text in texts for term in set(self.terms(text)))
        pairs = sorted(term for term, count in found.items() if isinstance(term, tuple) and count >= self.part.minimum_count)
        self._number(pairs)
        counts = torch.zeros(self._size)
        for term, count in found.items():
            if (place := self._place(term)) is not None:
                counts[place] = count
        self.rarity = torch.log((1 + len(texts)) / (1 + counts)) + 1

    def rows(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Sparse rows of length 1 as `embedding_bag` takes them: term places, weights ``(1 + ln count) · rarity``, row offsets."""
        places: list[int] = []
        weights: list[float] = []
        offsets: list[int] = []
        rarity = self.rarity.tolist()
        for text in texts:
            offsets.append(len(places))
            counts = Counter(place for term in self.terms(text) if (place := self._place(term)) is not None)
            row = [(1 + math.log(count)) * rarity[place] for place, count in counts.items()]
            length = math.sqrt(sum(weight * weight for weight in row))
            places += counts
            weights += [weight / length for weight in row]
        return torch.tensor(places, dtype=torch.long), torch.tensor(weights), torch.tensor(offsets, dtype=torch.long)

    def scores(self, rows: tuple[Tensor, Tensor, Tensor], matrix: Tensor, bias: Tensor) -> Tensor:
        """(n, classes) of sparse rows."""
        places, weights, offsets = rows
        weights = weights.to(matrix.dtype)
        return torch.nn.functional.embedding_bag(places, matrix, offsets, mode="sum", per_sample_weights=weights) + bias

    def features(self, texts: Sequence[str]) -> Tensor:
        places, weights, offsets = self.rows(texts)
        dense = torch.zeros(len(texts), self._size)
        owners = torch.bucketize(torch.arange(len(places)), offsets, right=True) - 1
        return dense.index_put_((owners, places), weights)

    def logits(self, texts: Sequence[str]) -> Tensor:
        return self.scores(self.rows(texts), self.matrix, self.bias)

    def tensors(self) -> dict[str, Tensor]:
        pairs = torch.tensor(list(self._pairs), dtype=torch.int32).reshape(-1, 2)
        return {"matrix": self.matrix, "bias": self.bias, "rarity": self.rarity, "pairs": pairs}

    def take(self, tensors: dict[str, Tensor]) -> None:
        self._number([(int(a), int(b)) for a, b in tensors["pairs"].tolist()])
        self.matrix, self.bias, self.rarity = tensors["matrix"], tensors["bias"], tensors["rarity"]
        shapes = tuple(self.matrix.shape), tuple(self.bias.shape), tuple(self.rarity.shape)
        if shapes != ((self._size, len(self.labels)), (len(self.labels),), (self._size,)):
            raise ValueError(f"shapes {shapes} for {self._size} terms and {len(self.labels)} labels")

    @property
    def _size(self) -> int:
        return len(self.vocabulary) + len(self._pairs)

    def _number(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._pairs = {pair: len(self.vocabulary) + number for number, pair in enumerate(pairs)}

    def _place(self, term: int | tuple[int, int]) -> int | None:
        return self._pairs.get(term) if isinstance(term, tuple) else term - 1


def fit(part: SoftmaxRegression, texts: Sequence[str], labels: Sequence[str], classes: list[str]) -> FittedSoftmaxRegression:
    """The weights at the minimum of ``mean nll + l2/2 · ‖matrix‖²``, in float64."""
    fitted = FittedSoftmaxRegression(part, classes, *vocabulary_of(texts, part.words, part.minimum_count))
    fitted.learn_terms(texts)
    rows = fitted.rows(texts)
    targets = torch.tensor([classes.index(label) for label in labels])
    matrix = torch.zeros(len(fitted.rarity), len(classes), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [matrix, bias], max_iter=part.steps, tolerance_grad=1e-7, tolerance_change=1e-12, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(fitted.scores(rows, matrix, bias), targets) + part.l2 / 2 * matrix.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    fitted.matrix, fitted.bias = matrix.detach().float(), bias.detach().float()
    return fitted
