"""Weights that keep the variance forwards and backwards, drawn from a normal distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import normal, table

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class XavierNormal(Initializer):
    """Normal with variance gain²·2/(inputs + outputs): `xavier_uniform` with the other distribution.

    Helps when: a stack of tanh or linear layers has no norms. Hurts when: the units are ReLUs, which halve the mean square (`he`).
    Cost: none. Start with: gain 1 for tanh, 4 for logistic units (E1).
    Source: Glorot & Bengio 2010, AISTATS; 2/(inputs + outputs) is the variance, its root the standard deviation (E6).
    """

    by_matrix: ClassVar[bool] = True

    gain: float = setting(1.0, "factor on the deviation: 1 for tanh and linear units, 4 for logistic", above=0.0, high=100.0, log=True)

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        if place.table:
            table(weight, random)
        else:
            normal(weight, self.gain * (2 / (place.fan_in + place.fan_out)) ** 0.5, random)
