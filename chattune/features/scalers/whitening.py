"""Uncorrelated directions of equal variance."""

from __future__ import annotations

import numpy as np

from chattune.core.part import setting
from chattune.features.scalers import Fitted, Scaler


class Whitening(Scaler):
    """Turn the features to their principal components and divide each by its standard deviation: the covariance is the identity.

    z = Λ^(−1/2) Uᵀ (x − μ), with Λ + ε in place of Λ; directions without any variance are left out.
    Helps when: correlated features would count twice in a distance; a classifier compares means.
    Hurts when: directions of little variance are noise: they become as loud as the others; a larger epsilon holds them down.
    Cost: O(rows · features² + features³), too much for layers of a network, where z-scores are used.   Start with: epsilon 1e-8.
    Source: Bishop 2006, section 12.1.3; Kessy et al. 2018, arXiv:1512.00809 ("PCA whitening"), with the population's covariance.
    """

    epsilon: float = setting(
        1e-8, "added to each variance, in squared units of the features", low=0.0, high=1e6, log=True, search=(1e-8, 1.0)
    )

    def fit(self, x: np.ndarray) -> Fitted:
        from chattune.features.scalers._affine import Affine, Columns, principal

        columns, x = Columns.of(x)
        mean, variance, directions = principal(x)
        deviation = np.sqrt(variance + self.epsilon)
        return Affine(columns, mean, directions / deviation, (directions * deviation).T)
