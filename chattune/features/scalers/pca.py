"""Uncorrelated directions, those of most variance first."""

from __future__ import annotations

import numpy as np

from chattune.core.part import setting
from chattune.features.scalers import Fitted, Scaler


class PCA(Scaler):
    """Turn the features to their principal components: uncorrelated, of falling variance; the last ones may be left out.

    Components without any variance are always left out. Features keep their units: put z_score before it where these differ.
    Helps when: features repeat one another; fewer numbers are wanted.
    Hurts when: what matters varies little: variance is not importance.
    Cost: O(rows · features²).   Start with: share 1; 0.95 to have fewer.
    Source: Jolliffe 2002, chapter 2, with the population's covariance (1/N).
    """

    share: float = setting(1.0, "share of the variance that the components kept have at least", above=0.0, high=1.0, search=(0.8, 1.0))
    components: int | None = setting(None, "components at the most; none: as many as the share asks for", low=1)

    def fit(self, x: np.ndarray) -> Fitted:
        from chattune.features.scalers._affine import Affine, Columns, principal

        columns, x = Columns.of(x)
        mean, variance, directions = principal(x)
        reached = np.cumsum(variance) / variance.sum()
        count = int(np.searchsorted(reached, self.share * (1 - 1e-12))) + 1 if self.share < 1 else len(variance)
        count = min(count, len(variance), self.components or count)
        return Affine(columns, mean, directions[:, :count], directions[:, :count].T)
