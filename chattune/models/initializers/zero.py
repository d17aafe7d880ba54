"""All weights zero, to see what that does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import table

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Zero(Initializer):
    """All matrices zero: the units of a layer begin equal, get equal gradients and stay equal.

    Helps when: one wants to see the symmetry problem; a model of one layer (softmax regression) may begin at zero. Hurts when: there
    is a hidden layer: whatever its width it computes one number; `chattune init-report` names the layers. Only the *output* matrices
    of residual branches may be zero, which is another setting (`init_outputs: zero`). Cost: all units but one.
    Start with: any other initializer. Token tables are normal with standard deviation 0.02, so that tokens differ.
    Source: Goodfellow et al. 2016, Deep Learning, section 8.4.
    """

    def notes(self) -> list[str]:
        return ["all units of a layer begin equal and stay equal (the symmetry problem): draw them, as fan_in or xavier_uniform do"]

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        if place.table:
            table(weight, random)
        else:
            weight.detach().zero_()
