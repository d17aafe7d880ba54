"""Weights that keep the variance of what enters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import normal, table

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class FanIn(Initializer):
    """Normal with variance gain²/inputs, so that a unit's net input has the variance of its inputs: the more inputs, the smaller each.

    Helps when: almost always with a norm in each layer, which takes care of the rest. Hurts when: a deep stack without norms uses
    ReLU (`he`) or must also keep the gradient's variance where widths change (`xavier_normal`). Cost: none.
    Start with: gain 1. Token tables are normal with standard deviation 0.02, since a fan says nothing about them.
    Source: the forward rule inputs · var(w) = 1 of LeCun et al. 1998, Efficient BackProp. It is a variance of 1/inputs, hence a
    standard deviation of 1/√inputs (E6).
    """

    gain: float = setting(1.0, "factor on the standard deviation 1/√inputs", above=0.0, high=100.0, log=True)

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        if place.table:
            table(weight, random)
        else:
            normal(weight, self.gain * place.fan_in**-0.5, random)
