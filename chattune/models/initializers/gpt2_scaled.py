"""GPT-2's fresh weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import normal

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class GPT2Scaled(Initializer):
    """Normal with standard deviation 0.02, and 0.02/√branches where a residual branch adds to the stream.

    Helps when: a deep residual model shall begin with a stream whose variance does not grow with depth. Hurts when: widths are far
    from GPT-2's 768 (0.02 is half of 1/√768; `fan_in` follows the width). Cost: none.
    Start with: std 0.02, and `init_outputs: same`, since this scales the outputs itself.
    Source: Radford et al. 2019, section 2.3: 1/√N with N residual layers; N counts branches, two a transformer layer.
    """

    std: float = setting(0.02, "standard deviation of matrices and tables", above=0.0, high=10.0, log=True)

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        normal(weight, self.std / (place.branches**0.5 if place.role == "branch_output" else 1.0), random)
