"""The largest singular values of a large, sparse matrix, by a seeded random projection."""

from __future__ import annotations

from typing import Any

import numpy as np

from chattune.core.seeds import generator

_SPARE = 16  # directions more than asked for, which make the last ones exact
_PASSES = 3


def truncated_svd(x: Any, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`u` (n, r), `s` (r,) falling and `v` (m, r) with x ≈ u · diag(s) · vᵀ, of the best r ≤ `rank` directions with s > 0.

    `x`: (n, m), sparse or dense. The largest number of each column of `v` in size is positive, so that signs are no accident.
    Source: Halko, Martinsson & Tropp 2011, arXiv:0909.4061, algorithm 4.4 with three passes.
    """
    columns = min(rank + _SPARE, *x.shape)
    span = np.linalg.qr(x @ generator(seed, "svd").standard_normal((x.shape[1], columns)))[0]
    for _ in range(_PASSES):
        span = np.linalg.qr(x.T @ span)[0]
        span = np.linalg.qr(x @ span)[0]
    inner, s, v = np.linalg.svd((x.T @ span).T, full_matrices=False)
    count = min(rank, int((s > s[:1] * max(x.shape) * np.finfo(np.float64).eps).sum()))
    v = v[:count].T
    sign = np.sign(v[np.abs(v).argmax(0), np.arange(count)]) if count else np.ones(0)
    return (span @ inner[:, :count]) * sign, s[:count], v * sign
