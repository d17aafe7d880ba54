"""The network that `bottleneck` puts after a linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.models.adapters import _maps as maps
from chattune.models.adapters._maps import Map, plain
from chattune.models.layers import Linear

if TYPE_CHECKING:
    from chattune.models.adapters.bottleneck import Bottleneck
    from chattune.models.language_model import LanguageModel

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "relu": torch.relu, "tanh": torch.tanh, "identity": lambda x: x
}  # fmt: skip


class Narrowed(nn.Module):
    """``y + f(y Dᵀ + c) Uᵀ + e`` for ``y = x Wᵀ + b``; ``weight`` and ``bias`` keep the names of the map it replaces.

    Where f is the identity there are no c and e, so that the whole merges into W and b.
    """

    def __init__(self, linear: Map, size: int, activation: str) -> None:
        super().__init__()
        self.weight, self.bias, self.activation = linear.weight, linear.bias, activation
        width, linearly = len(linear.weight), activation == "identity"
        self.down = nn.Parameter(linear.weight.new_empty(size, width))
        self.up = nn.Parameter(linear.weight.new_zeros(width, size))
        self.down_bias = None if linearly else nn.Parameter(linear.weight.new_zeros(size))
        self.up_bias = None if linearly else nn.Parameter(linear.weight.new_zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        middle = _ACTIVATIONS[self.activation](F.linear(y, self.down, self.down_bias))
        return y + F.linear(middle, self.up, self.up_bias)

    @torch.no_grad()
    def merged(self) -> Linear:
        both = torch.eye(len(self.weight), dtype=torch.float64, device=self.up.device) + self.up.double() @ self.down.double()
        bias = None if self.bias is None else (both @ self.bias.double()).to(self.bias.dtype)
        return plain((both @ self.weight.double()).to(self.weight.dtype), bias)


def attach(adapter: Bottleneck, model: LanguageModel, seed: int) -> None:
    maps.freeze_all(model)
    for name in maps.targets(model, adapter.targets, "train.adapter.targets"):
        linear = model.get_submodule(name)
        assert isinstance(linear, Map)
        maps.replace(model, name, Narrowed(linear, adapter.size, adapter.activation))
    maps.fill(model, lambda name: name.endswith(".down"), lambda weight: weight.shape[1] ** -0.5, seed)


def merge(model: LanguageModel) -> None:
    for name, module in _attached(model).items():
        maps.replace(model, name, module.merged())
    maps.freeze_all(model, False)


def detach(model: LanguageModel) -> None:
    for name, module in _attached(model).items():
        maps.replace(model, name, plain(module.weight, module.bias))
    maps.freeze_all(model, False)


def tensors(model: LanguageModel) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": tensor.detach()
        for name, module in _attached(model).items()
        for part in ("down", "down_bias", "up", "up_bias")
        if (tensor := getattr(module, part)) is not None
    }


@torch.no_grad()
def load(model: LanguageModel, found: dict[str, Tensor]) -> None:
    expected = tensors(model)
    maps.require_same(expected, found)
    for name, tensor in expected.items():
        tensor.copy_(found[name])


def _attached(model: LanguageModel) -> dict[str, Narrowed]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Narrowed)}
