"""Each feature through a curve that flattens at both ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from chattune.core.part import setting
from chattune.features.scalers import Fitted, Scaler

if TYPE_CHECKING:
    from chattune.features.scalers._affine import Affine


class Squash(Scaler):
    """Send each feature's z-score through tanh (to −1…1) or the logistic function (to 0…1): far values end near the bounds.

    Helps when: a few values are huge, as rewards and counts are; what comes next wants bounded numbers.
    Hurts when: differences among large values matter: beyond 2/gain little of them is left (tanh′(2) = 0.07).
    Cost: one pass, and a function for each number.   Start with: tanh, gain 1; 0.5 keeps twice the range nearly straight.
    Source: softmax scaling, Pyle 1999, "Data Preparation for Data Mining".
    """

    function: Literal["tanh", "sigmoid"] = setting("tanh", "the curve: tanh from −1 to 1, sigmoid from 0 to 1")
    gain: float = setting(1.0, "factor of the z-score before the curve", above=0.0, high=100.0, log=True, search=(0.2, 2.0))

    def fit(self, x: np.ndarray) -> Fitted:
        from chattune.features.scalers._affine import Affine, Columns

        columns, x = Columns.of(x)
        factor = self.gain / x.std(0)
        return _Squashed(Affine(columns, x.mean(0), factor, 1 / factor), self.function)


@dataclass(frozen=True)
class _Squashed:
    inner: Affine
    function: str

    @property
    def dropped(self) -> tuple[int, ...]:
        return self.inner.dropped

    def transform(self, x: np.ndarray) -> np.ndarray:
        """(n, kept) float64, within the bounds of the curve."""
        z = self.inner.transform(x)
        return np.tanh(z) if self.function == "tanh" else 0.5 * (1 + np.tanh(z / 2))  # = 1/(1 + e^(−z)), which cannot overflow so

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """(n, columns); what the curve flattened to its bound comes back as the last number before it."""
        z = np.asarray(z, np.float64)
        least = np.finfo(np.float64).eps
        if self.function == "tanh":
            return self.inner.inverse(np.arctanh(np.clip(z, least - 1, 1 - least)))
        z = np.clip(z, least, 1 - least)
        return self.inner.inverse(np.log(z / (1 - z)))
