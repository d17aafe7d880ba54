"""Mean 0 and variance 1 over a token's own numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.models.norms import Norm

if TYPE_CHECKING:
    from torch import nn


class LayerNorm(Norm):
    """(x − mean)/√(variance + ε) · γ + β over the units of one token, whatever else stands in the batch.

    In the matrix of units × samples it works on columns, where batch normalisation works on rows.

    Helps when: batches are small, rows have different lengths, a model is recurrent or decodes token by token. Hurts when: units mean
    very different things, as in the first layers of an image network (there `batch_norm` with large batches is the usual choice).
    Cost: two passes over the numbers. Start with: epsilon 1e-5.
    Source: Ba et al. 2016, arXiv:1607.06450. The variance is that of the sample (divided by the number of units).
    """

    epsilon: float = setting(1e-5, "added to the variance", above=0.0, high=1e-2, log=True)
    bias: bool = setting(True, "add a trained β to each unit")

    def build(self, width: int) -> nn.Module:
        from torch import nn

        return nn.LayerNorm(width, self.epsilon, bias=self.bias)

    def parameters(self, width: int) -> int:
        return (2 if self.bias else 1) * width
