"""The linear map of weight normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.core.errors import SettingError
from chattune.models.fresh import Settling


class WeightNormed(Settling):
    """``x (g · v/‖v‖)ᵀ + b``: `weight` holds v (outputs, inputs), `gain` g (outputs); the names of the map it replaces stay."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight = linear.get_parameter("weight")
        self.weight, self.bias = weight, getattr(linear, "bias", None)
        self.gain = nn.Parameter(torch.empty(len(weight), dtype=weight.dtype, device=weight.device))
        if not weight.is_meta:
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        length = torch.linalg.vector_norm(self.weight, dim=1)
        if bool((length == 0).any()):
            raise SettingError(
                "weight_norm divides by the length of each unit's weights, and fresh ones are zero.", path="model.norm",
                value="weight_norm", rule="fresh weights other than zero",
                hint="Choose another initializer, and init_outputs=scaled where the family has it.",
            )
        self.gain.copy_(length)

    def plain(self) -> Tensor:
        """(outputs, inputs): the matrix that the map multiplies with."""
        plain: Tensor = self.weight * (self.gain / torch.linalg.vector_norm(self.weight, dim=1))[:, None]
        return plain

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.plain(), self.bias)
