"""Division by the root mean square of a token's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.models.norms import Norm

if TYPE_CHECKING:
    from torch import nn


class RMSNorm(Norm):
    """x / √(mean(x²) + ε) · γ over the units of one token: layer normalisation without its centring.

    Helps when: the model is a transformer; the usual choice today. Hurts when: the mean of the units carries nothing and drifts
    (rare; `layer_norm` takes it away). Cost: one pass over the numbers, less than `layer_norm`. Start with: this.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    epsilon: float = setting(1e-5, "added to the mean square", above=0.0, high=1e-2, log=True)
    offset: float = setting(0.0, "added to γ: 1 where weights are kept around 0, as Gemma keeps them", low=-1e3, high=1e3)

    def build(self, width: int) -> nn.Module:
        from chattune.models import layers

        return layers.RMSNorm(width, self.epsilon, self.offset)

    def parameters(self, width: int) -> int:
        return width
