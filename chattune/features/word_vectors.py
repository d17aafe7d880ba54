"""Words as vectors, learnt from the company that they keep: near ones stand among the same neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

_WINDOW = 3  # words to either side
_LARGEST = 10_000  # words of the vocabulary
_SMOOTHED = 0.75  # power of the counts of neighbours, which keeps rare ones from standing out
_TOGETHER = 200_000  # pairs counted at once


@dataclass(frozen=True)
class WordVectors:
    """`words`, the frequent ones first, and a row of length 1 for each in `vectors` (n, size) float32."""

    words: tuple[str, ...]
    vectors: np.ndarray

    @classmethod
    def fit(cls, texts: Callable[[], Iterable[list[str]]], size: int = 64, least: int = 5, seed: int = 0) -> WordVectors:
        """From texts, each a list of words, which are iterated over twice; words that occur `least` times are kept, 10,000 at the most.

        Singular vectors of the positive pointwise mutual information of neighbours, scaled by the roots of the singular values.
        Source: Levy, Goldberg & Dagan 2015, "Improving distributional similarity with lessons learned from word embeddings".
        """
        from scipy import sparse

        from chattune.features.svd import truncated_svd

        counts = Counter(word for text in texts() for word in text)
        words = sorted((word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word))[:_LARGEST]
        number = {word: place for place, word in enumerate(words)}
        if len(words) < 2:
            return cls((), np.zeros((0, size), np.float32))
        together = sparse.csr_array((len(words), len(words)))
        for left, right in _pairs(texts(), number):
            ones = np.ones(len(left))
            together = together + sparse.csr_array((ones, (left, right)), shape=together.shape)
        together = (together + together.T).tocoo()
        own = np.asarray(together.sum(1)).ravel()
        near = own**_SMOOTHED / max(1.0, (own**_SMOOTHED).sum())
        row, column = together.coords
        information = np.log(together.data / (np.maximum(own[row], 1.0) * np.maximum(near[column], 1e-300)))
        positive = information > 0
        matrix = sparse.csr_array((information[positive], (row[positive], column[positive])), shape=together.shape)
        if not matrix.nnz:
            return cls((), np.zeros((0, size), np.float32))
        u, s, _ = truncated_svd(matrix, size, seed)
        vectors = u * np.sqrt(s)
        length = np.sqrt((vectors**2).sum(1))
        there = length > 1e-9  # a word without neighbours has no direction
        kept = tuple(word for word, known in zip(words, there, strict=True) if known)
        return cls(kept, (vectors[there] / length[there, None]).astype(np.float32))

    def neighbours(self, count: int, least: float) -> dict[str, tuple[str, ...]]:
        """For each word its nearest others, at most `count`, with a cosine of at least `least`; words without any are left out."""
        found: dict[str, tuple[str, ...]] = {}
        for first in range(0, len(self.words), 1024):
            cosines = self.vectors[first : first + 1024] @ self.vectors.T
            np.fill_diagonal(cosines[:, first:], -1.0)
            for place, row in enumerate(cosines):
                best = np.argsort(-row, kind="stable")[:count]
                near = tuple(self.words[number] for number in best.tolist() if row[number] >= least)
                if near:
                    found[self.words[first + place]] = near
        return found


def _pairs(texts: Iterable[list[str]], number: dict[str, int]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Numbers of known words and of the known words behind them within the window, some 200,000 pairs at a time."""
    left: list[int] = []
    right: list[int] = []
    for text in texts:
        known = [number.get(word, -1) for word in text]
        for place, own in enumerate(known):
            if own >= 0:
                others = [other for other in known[place + 1 : place + 1 + _WINDOW] if other >= 0]
                left += [own] * len(others)
                right += others
        if len(left) >= _TOGETHER:
            yield np.array(left, np.int64), np.array(right, np.int64)
            left, right = [], []
    yield np.array(left, np.int64), np.array(right, np.int64)
