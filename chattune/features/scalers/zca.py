"""Whitened features that stay as near to the original ones as they can."""

from __future__ import annotations

import numpy as np

from chattune.core.part import setting
from chattune.features.scalers import Fitted, Scaler


class ZCA(Scaler):
    """Whiten, then turn back: z = U Λ^(−1/2) Uᵀ (x − μ). The covariance is the identity and each feature is still itself.

    Of all whitenings it changes the features least (in the mean square). Λ + ε stands in place of Λ; in directions without any variance
    the result is 0, and the covariance the identity in the others.
    Helps when: whitened features are to be read, or drawn, as what they were (pixels, named features).
    Hurts when: as in whitening.   Cost: as whitening, and a product of features × features for each row.   Start with: epsilon 1e-8.
    Source: Bell & Sejnowski 1997; Kessy et al. 2018, arXiv:1512.00809, with the population's covariance.
    """

    epsilon: float = setting(
        1e-8, "added to each variance, in squared units of the features", low=0.0, high=1e6, log=True, search=(1e-8, 1.0)
    )

    def fit(self, x: np.ndarray) -> Fitted:
        from chattune.features.scalers._affine import Affine, Columns, principal

        columns, x = Columns.of(x)
        mean, variance, directions = principal(x)
        deviation = np.sqrt(variance + self.epsilon)
        return Affine(columns, mean, directions / deviation @ directions.T, directions * deviation @ directions.T)
