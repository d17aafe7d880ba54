"""Each feature with mean 0 and standard deviation 1."""

from __future__ import annotations

import numpy as np

from chattune.features.scalers import Fitted, Scaler


class ZScore(Scaler):
    """Subtract each feature's mean and divide by its standard deviation, the population's: σ² = (1/N) Σ (x − μ)².

    Every feature then has mean 0 and variance 1, and the shape that it had before: what is not normally distributed does not become so.
    A feature with σ = 0 tells nothing and is left out (`dropped`).
    Helps when: features have different units, for distances, gradient descent and penalties on weights.
    Hurts when: a few values are far from all others: they decide μ and σ.
    Cost: two passes, O(rows · features).   Start with: always the first to try.
    Source: Hastie et al. 2009, section 3.4.1. Some texts say "standard normal" afterwards, which is not so (E24).
    """

    def fit(self, x: np.ndarray) -> Fitted:
        from chattune.features.scalers._affine import Affine, Columns

        columns, x = Columns.of(x)
        deviation = x.std(0)
        return Affine(columns, x.mean(0), 1 / deviation, deviation)
