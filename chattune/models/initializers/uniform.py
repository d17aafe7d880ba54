"""Weights spread evenly over a stated range."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Uniform(Initializer):
    """Uniform on [−bound, bound], whatever the size of a layer; the variance is bound²/3.

    Helps when: a published recipe names a range. Hurts when: the range does not follow the number of inputs: in a stack of 30 tanh
    layers a bound of 0.01 leaves nothing of the signal (`xavier_uniform` sets the bound from the connections). Cost: none.
    Start with: bound √(3/inputs), which keeps the variance of what enters.
    Source: the variance of a uniform distribution.
    """

    bound: float = setting(0.05, "largest absolute value of all matrices and tables", above=0.0, high=10.0, log=True)

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        uniform(weight, self.bound, random)
