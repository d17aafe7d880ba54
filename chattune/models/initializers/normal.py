"""Weights of one stated standard deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import normal

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Normal(Initializer):
    """Normal with mean 0 and a fixed standard deviation, whatever the size of a layer.

    Helps when: a published recipe names a number. Hurts when: depth or width change and the number does not follow them: too small
    and the signal vanishes, too large and units saturate. Cost: none.
    Start with: std 0.02 for widths of some hundred; a variance of 0.01 is std 0.1 (E6).
    Source: Krizhevsky et al. 2012 (std 0.01); Radford et al. 2019 (std 0.02).
    """

    std: float = setting(0.02, "standard deviation (the root of the variance) of every matrix", above=0.0, high=10.0, log=True)

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        normal(weight, self.std, random)
