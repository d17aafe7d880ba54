"""Covariate shift: do two sets of rows come from one distribution? Three tests, each blind to something that another one sees.

A domain classifier sees what separates rows linearly or by size, the kernel test (MMD) any difference of whole distributions that is
not too fine, the test of each feature names what changed. Source: Rabanser et al. 2019, arXiv:1810.11953, "Failing loudly".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chattune.core.errors import DataError
from chattune.core.seeds import generator
from chattune.features.scalers.z_score import ZScore

ROWS = 1000  # of each side at the most: the kernel test compares every row with every other
LEAST = 20
_FOLDS = 5
_RIDGE = 1.0  # added to the squares of z-scores that a direction is learnt from
_PERMUTATIONS = 999


@dataclass(frozen=True)
class Changed:
    """One feature: its number and name, its Kolmogorov–Smirnov distance and p-value, and that value after the corrections for many
    features: `holm` bounds the chance of one false alarm, `rate` (Benjamini–Hochberg) their share among the alarms."""

    feature: int
    name: str
    distance: float
    p: float
    holm: float
    rate: float


@dataclass(frozen=True)
class Shift:
    """What was found. `auc`: chance that the domain classifier puts a random row of b above one of a, on rows it has not seen (0.5: it
    cannot tell them apart); `mmd`: squared maximum mean discrepancy, unbiased (about 0 without shift); both with p-values by
    permutation; `features`: the surest first; `p`: of the verdict, the least of the three p-values times three (Bonferroni);
    `shifted`: p ≤ level. `rows`: rows of either side that were compared; `dropped`: constant features."""

    shifted: bool
    p: float
    level: float
    auc: float
    auc_p: float
    mmd: float
    mmd_p: float
    features: tuple[Changed, ...]
    rows: tuple[int, int]
    dropped: tuple[str, ...]

    def told(self, most: int = 20) -> dict[str, Any]:
        """Plain data, with the `most` surest features."""
        return {**asdict(self), "features": [asdict(one) for one in self.features[:most]]}


def shift(a: np.ndarray, b: np.ndarray, seed: int = 0, *, names: Sequence[str] | None = None, level: float = 0.01) -> Shift:
    """Whether the rows of `b` (m, d) come from where those of `a` (n, d) do; a false alarm in a share `level` of cases at the most.

    Rows must be independent: near-duplicates that stand on one side only are a difference, and are found as one. From each side 1,000
    rows are drawn at the most; 20 are needed. `names`: of the features. `DataError` for too few rows or other columns.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for side in (a, b):
        if side.ndim != 2 or len(side) < LEAST or side.shape[1] != a.shape[1]:
            raise DataError(
                f"rows of shapes {a.shape} and {b.shape} cannot be compared.", value=len(side),
                rule=f"at least {LEAST} rows on either side, of the same features",
            )
    names = [str(number) for number in range(a.shape[1])] if names is None else names
    a, b = (_some(side, generator(seed, "shift", place)) for place, side in enumerate((a, b)))
    both = np.concatenate([a, b])
    if not (np.ptp(both, 0) > 0).any():  # nothing varies at all
        return Shift(False, 1.0, level, 0.5, 1.0, 0.0, 1.0, (), (len(a), len(b)), tuple(names))
    scaler = ZScore().fit(both)
    x, kept = scaler.transform(both), np.delete(np.arange(len(names)), list(scaler.dropped))
    labels = _labels(len(a), len(b), generator(seed, "shift", "permutations"))
    areas = _areas(x, labels, generator(seed, "shift", "folds"))
    discrepancies = _discrepancies(x, labels)
    features = _features(a, b, kept.tolist(), names)
    auc_p, mmd_p = _p(np.abs(areas - 0.5)), _p(discrepancies)
    p = min(1.0, 3 * min(auc_p, mmd_p, features[0].holm))
    return Shift(
        p <= level, p, level, float(areas[0]), auc_p, float(discrepancies[0]), mmd_p, features, (len(a), len(b)),
        tuple(names[number] for number in scaler.dropped),
    )  # fmt: skip


def holm(p: np.ndarray) -> np.ndarray:
    """(n,) p-values that bound the chance of one false alarm among n. Source: Holm 1979."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(1.0, stepped)
    return found


def _some(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= ROWS else rows[np.sort(random.choice(len(rows), ROWS, replace=False))]


def _labels(n: int, m: int, random: np.random.Generator) -> np.ndarray:
    """(n + m, 1 + permutations): 1 for rows of b; the first column is the truth, the others are drawn."""
    truth = np.repeat([0.0, 1.0], [n, m])
    return np.stack([truth, *(random.permutation(truth) for _ in range(_PERMUTATIONS))], axis=1)


def _areas(x: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(1 + permutations,) areas under the ROC curve of a classifier cross-fitted for each column of labels.

    Least squares on z-scores and their squares, which is Fisher's discriminant: scores are linear in the labels, so that fitting it
    anew for every permutation costs one product, and the p-value is exact whatever the folds have in common.
    """
    from scipy.stats import rankdata

    x = np.concatenate([x, x**2], axis=1)
    x = ZScore().fit(x).transform(x)
    fold = random.permutation(len(x)) % _FOLDS
    scores = np.empty_like(labels)
    for number in range(_FOLDS):
        own, others = fold == number, fold != number
        design = x[others] - x[others].mean(0)
        wanted = labels[others] - labels[others].mean(0)
        weights = np.linalg.solve(design.T @ design + _RIDGE * np.eye(x.shape[1]), design.T @ wanted)
        scores[own] = (x[own] - x[others].mean(0)) @ weights
    ranks = rankdata(scores, axis=0)
    ones = labels.sum(0)
    found: np.ndarray = ((ranks * labels).sum(0) - ones * (ones + 1) / 2) / (ones * (len(x) - ones))
    return found


def _discrepancies(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(1 + permutations,) unbiased squared MMD with a Gaussian kernel as wide as the median distance of two rows.

    Source: Gretton et al. 2012, "A kernel two-sample test", lemma 6 and section 8.
    """
    squares = (x**2).sum(1)
    distance = np.maximum(0.0, squares[:, None] + squares - 2 * x @ x.T)
    upper = distance[np.triu_indices(len(x), 1)]
    width = float(np.median(upper)) or float(upper.mean()) or 1.0
    kernel = np.exp(-distance / width)
    np.fill_diagonal(kernel, 0.0)
    m = labels.sum(0)
    n = len(x) - m
    to_b = kernel @ labels
    in_b = (labels * to_b).sum(0)
    across = to_b.sum(0) - in_b
    in_a = kernel.sum() - in_b - 2 * across
    found: np.ndarray = in_a / (n * (n - 1)) + in_b / (m * (m - 1)) - 2 * across / (n * m)
    return found


def _features(a: np.ndarray, b: np.ndarray, kept: Sequence[int], names: Sequence[str]) -> tuple[Changed, ...]:
    from scipy.stats import false_discovery_control, ks_2samp

    tests = [ks_2samp(a[:, number], b[:, number], method="asymp") for number in kept]
    p = np.array([float(test.pvalue) for test in tests])
    corrected, rates = holm(p), false_discovery_control(p)
    found = [
        Changed(number, names[number], float(test.statistic), float(test.pvalue), float(corrected[place]), float(rates[place]))
        for place, (number, test) in enumerate(zip(kept, tests, strict=True))
    ]
    return tuple(sorted(found, key=lambda one: (one.p, -one.distance, one.feature)))


def _p(values: np.ndarray) -> float:
    """Share of the values, the first one among them, that are as large as the first: the p-value by permutation."""
    return float((values >= values[0] - 1e-12 * abs(values[0])).mean())
