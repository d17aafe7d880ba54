"""Weights that keep the mean square through ReLUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import normal, table

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class He(Initializer):
    """Normal with variance 2/fan: a ReLU keeps half of the mean square of what enters, and the 2 gives it back.

    Helps when: a stack of ReLUs (or GELUs, nearly) has no norms: 30 layers keep their signal, of which Xavier leaves 2⁻³⁰.
    Hurts when: units are linear around 0, as tanh: the signal grows until they saturate. Cost: none.
    Start with: fan inputs, which keeps the signal on its way forward; outputs keeps the gradient on its way back.
    Source: He et al. 2015, arXiv:1502.01852, equations 10 and 14; with a negative slope a the variance is 2/((1 + a²)·fan).
    """

    by_matrix: ClassVar[bool] = True

    fan: Literal["inputs", "outputs"] = setting("inputs", "what the variance is divided by: a unit's inputs, or an input's units")
    slope: float = setting(0.0, "slope of a leaky ReLU for negative numbers", low=0.0, high=1.0)

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        if place.table:
            table(weight, random)
        else:
            fan = place.fan_in if self.fan == "inputs" else place.fan_out
            normal(weight, (2 / ((1 + self.slope**2) * fan)) ** 0.5, random)
