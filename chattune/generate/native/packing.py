"""Weight formats of the compiled step: how matrices are rounded, and how they lie in memory. `dequantised` is their oracle.

A tile holds 16 outputs side by side for each input, so that a register's lanes are outputs. int8 has one scale for each output; int4
a scale and a least number for each output and 32 inputs, rounded to bfloat16 before the whole numbers are chosen: 5 bits a weight.
The head stays in int8 beside int4, which costs it nearly as much as all other matrices together.
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
TILE, GROUP, PART = 16, 64, 32  # outputs and inputs of a block; inputs that are rounded together
_MULTIPLE: dict[Weights, int] = {"float32": 1, "bfloat16": 2, "int8": GROUP, "int4": GROUP}  # that inputs are filled up to
# Shares of a part's span that the sixteen steps cover: less than all of it clips few numbers and serves the others better.
_SPANS = (1.0, 0.95, 0.9, 0.85, 0.8)
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


@dataclass(frozen=True)
class Int4:
    """``weight ≈ whole · scale + least``: `whole` (outputs, parts, 32) from 0 to 15, the others (outputs, parts) in bfloat16."""

    whole: Tensor
    scale: Tensor
    least: Tensor


def of_head(weights: Weights) -> Weights:
    """The format of the output head where the other matrices are in `weights`."""
    return "int8" if weights == "int4" else weights


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
        data = _pack_int4(rounded_to_int4(weight), tiles)
    return Packed(weights, data.view(torch.uint8), scale, inputs, tiles)


def _pack_int4(rounded: Int4, tiles: int) -> Tensor:
    """(tiles, groups, 640) bytes: inputs j·4 + i and 32 + j·4 + i of 64 share a byte, the first in its lower half; the scales of the
    16 outputs follow, for either half, then their least numbers."""
    groups = rounded.whole.shape[1] // 2
    nibbles = rounded.whole.to(torch.uint8).view(tiles, TILE, groups, 2, 8, 4)
    both = (nibbles[:, :, :, 0] | nibbles[:, :, :, 1] << 4).permute(0, 2, 3, 1, 4).reshape(tiles, groups, -1)
    sides = (side.view(tiles, TILE, groups, 2).permute(0, 2, 3, 1).flatten(2).contiguous() for side in (rounded.scale, rounded.least))
    return torch.cat((both, *(side.view(torch.uint8) for side in sides)), dim=2)


def rounded_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the same shape, within ±127, and float32 scales (outputs,): ``weight ≈ int8 · scale``."""
    scale = weight.abs().amax(1) / 127
    whole = (weight / scale.clamp_min(1e-30)[:, None]).round().clamp_(-127, 127)
    return whole.to(torch.int8), scale


def rounded_to_int4(weight: Tensor) -> Int4:
    """Of (outputs, inputs), inputs a multiple of 32. The span of a part is that of several with the least squared error."""
    outputs, inputs = weight.shape
    pieces = [_int4(piece.reshape(-1, PART)) for piece in torch.split(weight, max(1, _CHUNK // inputs))]
    whole, scale, least = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return Int4(whole.view(outputs, -1, PART), scale.view(outputs, -1), least.view(outputs, -1))


def _int4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, 32) → whole numbers, scales (n,) and least numbers (n,)."""
    low, high = groups.amin(1), groups.amax(1)
    middle, half = (high + low) / 2, (high - low) / 2
    scale, least = torch.zeros_like(half), torch.zeros_like(half)
    error = torch.full_like(half, torch.inf)
    for share in _SPANS:
        step, start = (half * (share * 2 / 15)).bfloat16().float(), (middle - half * share).bfloat16().float()
        missed = (groups - _numbers(groups, step, start) * step[:, None] - start[:, None]).square().sum(1)
        better = missed < error
        scale, least = torch.where(better, step, scale), torch.where(better, start, least)
        error = torch.where(better, missed, error)
    return _numbers(groups, scale, least), scale.bfloat16(), least.bfloat16()


def _numbers(groups: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return ((groups - least[:, None]) * inverse[:, None]).round_().clamp_(0, 15)


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
    found = rounded_to_int4(F.pad(weight, (0, -inputs % GROUP)))
    return (found.whole * found.scale.float()[:, :, None] + found.least.float()[:, :, None]).view(outputs, -1)[:, :inputs]


def rounded_activations(x: Tensor) -> Tensor:
    """(…, inputs) rounded to int8 by parts of 32, as before every product with an integer matrix."""
    inputs = x.shape[-1]
    groups = F.pad(x, (0, -inputs % PART)).reshape(*x.shape[:-1], -1, PART)
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
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.weight.data = rounded(module.weight, of_head(weights) if name == "output" else weights)
    return model
