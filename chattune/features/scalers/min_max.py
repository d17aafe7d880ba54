"""Each feature between two bounds."""

from __future__ import annotations

import numpy as np
from pydantic import model_validator

from chattune.core.part import setting
from chattune.features.scalers import Fitted, Scaler


class MinMax(Scaler):
    """Map each feature's least and largest training value to two bounds: x̂ = (x − min)/(max − min), from 0 to 1 or from −1 to 1.

    Values beyond those of training lie beyond the bounds. A constant feature has no such map and is left out (`dropped`).
    Helps when: what comes next wants bounded numbers; bounds are known and real (shares, ratings).
    Hurts when: one value is far from all others: it squeezes the rest together.
    Cost: one pass, O(rows · features).   Start with: 0 to 1; −1 to 1 before tanh.
    Source: Han et al. 2011, "Data Mining", section 3.5.2.
    """

    low: float = setting(0.0, "where the least training value goes")
    high: float = setting(1.0, "where the largest training value goes")

    @model_validator(mode="after")
    def _in_order(self) -> MinMax:
        if self.low >= self.high:
            raise ValueError("low should be below high, such as -1 and 1")
        return self

    def fit(self, x: np.ndarray) -> Fitted:
        from chattune.features.scalers._affine import Affine, Columns

        columns, x = Columns.of(x)
        factor = (self.high - self.low) / (x.max(0) - x.min(0))
        return Affine(columns, x.min(0), factor, 1 / factor, self.low)
