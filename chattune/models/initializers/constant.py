"""All weights one number, to see what that does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import table

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Constant(Initializer):
    """All matrices one number: the units of a layer begin equal, get equal gradients and stay equal.

    Helps when: a computation shall be followed by hand. Hurts when: there is a hidden layer: the symmetry problem of `zero`, with
    gradients that do flow. Cost: all units but one. Start with: any other initializer. Token tables are normal with standard
    deviation 0.02, so that tokens differ.
    Source: Goodfellow et al. 2016, Deep Learning, section 8.4.
    """

    value: float = setting(0.01, "what every weight is", low=-10.0, high=10.0)

    def notes(self) -> list[str]:
        return ["all units of a layer begin equal and stay equal (the symmetry problem): draw them, as fan_in or xavier_uniform do"]

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        if place.table:
            table(weight, random)
        else:
            weight.detach().fill_(self.value)
