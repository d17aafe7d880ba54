"""The company that a text keeps: how near it lies to those of a sample that are nearest to it.

What much is said of has near ones; what only a few texts are about has none, even where these few are alike, since the nearest part of
a sample is a larger one than they are. Source: distance to the k nearest neighbours as a score of outliers, Ramaswamy et al. 2000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TOGETHER = 4096  # rows compared at once
_SPREAD = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


@dataclass(frozen=True)
class Company:
    """`rows`: (m, size) of length 1 or 0; `count`: how many of them are a text's company."""

    rows: np.ndarray
    count: int

    def nearness(self, rows: np.ndarray) -> np.ndarray:
        """(n,) float64: mean cosine of each of `rows` (n, size) with its `count` nearest ones."""
        return self._means(rows, self.count, 0)

    def own(self) -> np.ndarray:
        """(m,) float64: the same for the sample's own rows, each among the others."""
        return self._means(self.rows, min(self.count, len(self.rows) - 1), 1)

    def _means(self, rows: np.ndarray, count: int, skipped: int) -> np.ndarray:
        found = [np.zeros(0)]
        for first in range(0, len(rows), _TOGETHER):
            cosines = rows[first : first + _TOGETHER] @ self.rows.T
            if skipped:
                np.fill_diagonal(cosines[:, first:], -np.inf)  # nobody keeps oneself company
            nearest = np.partition(cosines, cosines.shape[1] - count, axis=1)[:, cosines.shape[1] - count :]
            found.append(nearest.mean(1, dtype=np.float64))
        return np.concatenate(found)


def least_usual(values: np.ndarray, deviations: float) -> float:
    """The value that lies so many standard deviations below the middle; both are estimated robustly, whatever a few values are.

    Source: median and median absolute deviation, Rousseeuw & Croux 1993.
    """
    middle = float(np.median(values))
    return middle - deviations * _SPREAD * float(np.median(np.abs(values - middle)))
