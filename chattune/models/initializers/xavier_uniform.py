"""Weights that keep the variance forwards and backwards, drawn uniformly."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import table, uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class XavierUniform(Initializer):
    """Uniform on [−r, r] with r = gain·√(6/(inputs + outputs)), whose variance is gain²·2/(inputs + outputs).

    The compromise between the forward rule inputs·var(w) = 1 and the backward rule outputs·var(w) = 1. It holds where units are
    linear around 0 with slope 1 and activations have mean 0: gain 1 for tanh (and no activation). Logistic units have slope ¼: gain 4,
    which makes each layer better but still keeps no variance through 30 layers, since their mean is ½.

    Helps when: a stack of tanh or linear layers has no norms. Hurts when: the units are ReLUs, which halve the mean square (`he`).
    Cost: none. Start with: gain 1 for tanh, 4 for logistic units; some texts print the two the other way round (E1).
    Source: Glorot & Bengio 2010, AISTATS. The variance is 2/(inputs + outputs), not 1 (E1b); the factor 4 is not in the paper.
    """

    by_matrix: ClassVar[bool] = True

    gain: float = setting(1.0, "factor on the bound: 1 for tanh and linear units, 4 for logistic ones", above=0.0, high=100.0, log=True)

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        if place.table:
            table(weight, random)
        else:
            uniform(weight, self.gain * (6 / (place.fan_in + place.fan_out)) ** 0.5, random)
