"""Scalers: numeric features brought to comparable scales, fitted on training data only.

`fit` gives a `Fitted` scaler, whose `transform` is then the same for every split.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from chattune.core.part import Part


class Fitted(Protocol):
    """A scaler that has seen the training data. `dropped`: columns (from 0) that held no information and are left out."""

    @property
    def dropped(self) -> tuple[int, ...]: ...

    def transform(self, x: np.ndarray) -> np.ndarray: ...

    def inverse(self, z: np.ndarray) -> np.ndarray: ...


class Scaler(Part):
    """One way to scale columns."""

    def fit(self, x: np.ndarray) -> Fitted:
        """Learn from (n, features) `x`, n ≥ 1, all finite and at least one feature that varies; `DataError` where that is not so."""
        raise NotImplementedError
