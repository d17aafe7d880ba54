"""Activations of plain units as modules, so that a report can look at what enters them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Name = Literal["tanh", "logistic", "relu", "gelu", "identity"]
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "logistic": torch.sigmoid, "relu": F.relu, "gelu": F.gelu, "identity": lambda x: x,
}  # fmt: skip
# Beyond these the slope is below 0.071 of the steepest: tanh'(2) = 0.071, and logistic(z) = (1 + tanh(z/2))/2.
SATURATION = {"tanh": 2.0, "logistic": 4.0}


class Activation(nn.Module):
    """The function of that name, unit by unit."""

    def __init__(self, name: Name) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return _FUNCTIONS[self.name](x)

    def extra_repr(self) -> str:
        return self.name
