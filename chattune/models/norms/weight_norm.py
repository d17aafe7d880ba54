"""Rows of a matrix with a length of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.models.norms import Norm

if TYPE_CHECKING:
    from torch import nn


class WeightNorm(Norm):
    """w = g · v/‖v‖ for the weights of each unit: length and direction are learned apart.

    Nothing is measured on data: rows of the batch stay apart and nothing has to be remembered. In a convolution, whose weights are
    shared over positions, there are far fewer weights to normalise than numbers in the layer.

    Helps when: batches are small or noise hurts (recurrent models, generative ones, reinforcement learning). Hurts when: the scale of
    what enters drifts, which it does not see. Cost: one pass over the weights, and one number more for each unit. Start with: this
    alone; g begins as ‖v‖, so that the fresh model is the plain one.
    Source: Salimans & Kingma 2016, arXiv:1602.07868.
    """

    def build(self, width: int) -> nn.Module:
        from torch import nn

        return nn.Identity()

    def wrap(self, linear: nn.Module) -> nn.Module:
        from chattune.models.norms._weight_norm import WeightNormed

        return WeightNormed(linear)

    def parameters(self, width: int) -> int:
        return 0

    def wrapped_parameters(self, outputs: int) -> int:
        return outputs
