"""Weight formats of the compiled step: how matrices are rounded, and how they lie in memory. `dequantised` is their oracle.

A tile holds 16 outputs side by side for each input, so that a register's lanes are outputs. int8 has one scale for each output; int4
one for each output and group of 64 inputs, itself rounded to bfloat16 before the numbers are chosen.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from chattune.models.language_model import LanguageModel

Weights = Literal["float32", "bfloat16", "int8", "int4"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
TILE, GROUP = 16, 64
_MULTIPLE: dict[Weights, int] = {"float32": 1, "bfloat16": 2, "int8": GROUP, "int4": GROUP}  # that inputs are filled up to
# By what the largest number of a group is divided: -8 is the end of the range that reaches further. Others than 8 clip it or leave
# room, which pays where few numbers of the group are large.
_LEVELS = (6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.5)
_CHUNK = 1 << 17  # numbers that are rounded at a time: they stay in the second cache
Model = TypeVar("Model", bound=LanguageModel)


@dataclass(frozen=True)
class Packed:
    """A matrix as the step reads it. `data`: bytes, tile by tile; `scale`: (tiles · 16,) float32, for int8 alone; `inputs` are
    those of the model, filled up with zeros to what the format needs."""

    weights: Weights
    data: Tensor
    scale: Tensor | None
    inputs: int
    tiles: int


def pack(weight: Tensor, weights: Weights) -> Packed:
    """(outputs, inputs) → tiles. Outputs are filled up to whole tiles with zeros."""
    outputs, inputs = weight.shape
    weight = F.pad(weight.detach().float(), (0, -inputs % _MULTIPLE[weights], 0, -outputs % TILE))
    tiles, inputs = len(weight) // TILE, weight.shape[1]
    scale = None
    if weights == "float32":
        data = weight.view(tiles, TILE, inputs).transpose(1, 2).contiguous()
    elif weights == "bfloat16":
        data = weight.bfloat16().view(tiles, TILE, inputs // 2, 2).transpose(1, 2).contiguous()
    elif weights == "int8":
        whole, scale = rounded_to_int8(weight)
        data = whole.view(tiles, TILE, inputs // 4, 4).transpose(1, 2).contiguous()
    else:
        data = _pack_int4(*rounded_to_int4(weight), tiles)
    return Packed(weights, data.view(torch.uint8), scale, inputs, tiles)


def _pack_int4(whole: Tensor, scale: Tensor, tiles: int) -> Tensor:
    """(outputs, groups, 64) from -8 to 7 and bfloat16 (outputs, groups) → (tiles, groups, 544) bytes: inputs j·4 + i and 32 + j·4 + i
    of a group share a byte, the first in its lower half; the scales of the 16 outputs follow."""
    groups = whole.shape[1]
    nibbles = (whole + 8).to(torch.uint8).view(tiles, TILE, groups, 2, 8, 4)
    both = (nibbles[:, :, :, 0] | nibbles[:, :, :, 1] << 4).permute(0, 2, 3, 1, 4).reshape(tiles, groups, -1)
    scales = scale.view(tiles, TILE, groups).transpose(1, 2).contiguous().view(torch.uint8)
    return torch.cat((both, scales), dim=2)


def rounded_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the same shape, within ±127, and float32 scales (outputs,): ``weight ≈ int8 · scale``."""
    scale = weight.abs().amax(1) / 127
    whole = (weight / scale.clamp_min(1e-30)[:, None]).round().clamp_(-127, 127)
    return whole.to(torch.int8), scale


def rounded_to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (outputs, groups, 64) of whole numbers from -8 to 7 and bfloat16 scales (outputs, groups): ``weight ≈ whole · scale``.

    The scale of a group is that of several with the least squared error, then fitted to the whole numbers that it gave.
    """
    outputs, inputs = weight.shape
    rows = max(1, _CHUNK // inputs)
    groups = [_int4(piece.reshape(-1, GROUP)) for piece in torch.split(weight, rows)]
    whole = torch.cat([piece for piece, _ in groups]).view(outputs, -1, GROUP)
    return whole, torch.cat([scale for _, scale in groups]).view(outputs, -1)


def _int4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 64) → whole numbers and bfloat16 scales (n,)."""
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))[:, 0]
    best, error = torch.zeros_like(extreme), torch.full_like(extreme, torch.inf)

    def tried(scale: Tensor) -> None:
        scale = scale.bfloat16().float()
        missed = (groups - _whole(groups, scale) * scale[:, None]).square().sum(1)
        better = missed < error
        torch.where(better, scale, best, out=best)
        torch.where(better, missed, error, out=error)

    for level in _LEVELS:
        tried(extreme / -level)
    whole = _whole(groups, best)
    tried((groups * whole).sum(1) / whole.square().sum(1).clamp_min(1e-30))
    return _whole(groups, best), best.bfloat16()


def _whole(groups: Tensor, scale: Tensor) -> Tensor:
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return (groups * inverse[:, None]).round_().clamp_(-8, 7)


def rounded(weight: Tensor, weights: Weights) -> Tensor:
    """float32 (outputs, inputs): the numbers that the step multiplies with."""
    outputs, inputs = weight.shape
    weight = weight.detach().float()
    if weights == "float32":
        return weight.clone()
    if weights == "bfloat16":
        return weight.bfloat16().float()
    if weights == "int8":
        whole, scale = rounded_to_int8(weight)
        return whole.float() * scale[:, None]
    numbers, scales = rounded_to_int4(F.pad(weight, (0, -inputs % GROUP)))
    return (numbers * scales.float()[:, :, None]).view(outputs, -1)[:, :inputs]


def rounded_activations(x: Tensor) -> Tensor:
    """(…, inputs) rounded to int8 by groups of 64, as before every product with an integer matrix."""
    inputs = x.shape[-1]
    groups = F.pad(x, (0, -inputs % GROUP)).reshape(*x.shape[:-1], -1, GROUP)
    most = groups.abs().amax(-1, keepdim=True)
    whole: Tensor = (groups * (127 / most.clamp_min(1e-30))).round() * (most / 127)
    return whole.flatten(-2)[..., :inputs]


def dequantised(model: Model, weights: Weights) -> Model:
    """A copy of the GPT model in float32 whose matrices are those of the format, for processors without a compiler and for tests.

    It has the format's loss of precision and none of its speed. Embeddings stay as they are; a tied head becomes one of its own.
    Activations are not rounded: see `rounded_activations`.
    """
    from chattune.models.layers import Linear

    model = copy.deepcopy(model).float()
    if weights != "float32" and getattr(model, "output", None) is None:
        table = model.get_parameter("embedding.weight")
        head = Linear(table.shape[1], table.shape[0])
        head.weight.data = table.detach().clone()
        model.output = head
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight.data = rounded(module.weight, weights)
    return model
