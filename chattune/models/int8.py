"""Products of linear maps in eight-bit integers, forward and backward, for training: `int8_linear`.

On processors with VNNI an int8 product takes a quarter of a float32 one's time. Each operand is rounded to 127 steps, each way, of
scales of its own: one for each row or column that a sum runs along; the sums are exact in int32. Weights, their gradients,
embedding and head, norms, attention and the optimizer stay float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LONGEST = 1 << 16  # terms of one sum: 127² times as many stay below 2³¹


def int8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x Wᵀ`` (…, outputs) of (…, inputs) `x` and (outputs, inputs) `weight`, both float32; about 1 % off, and so are gradients.

    Source: row-wise scales, Dettmers et al. 2022, arXiv:2208.07339; int8 products also in the backward pass of training,
    Wortsman et al. 2023, arXiv:2304.13013 (there the gradient of the weights stays in higher precision; here it does not).
    """
    product: Tensor = _Int8Linear.apply(x.reshape(-1, x.shape[-1]), weight)  # type: ignore[no-untyped-call]
    return product.view(*x.shape[:-1], -1)


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x = _product(gradient, weight) if ctx.needs_input_grad[0] else None
        for_weight = _product(gradient.t(), x) if ctx.needs_input_grad[1] else None
        return for_x, for_weight


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` of (rows, terms) and (terms, columns); rows of `a` and columns of `b` are rounded to int8 by scales of their own."""
    if a.shape[1] > _LONGEST:
        pieces = zip(torch.split(a, _LONGEST, 1), torch.split(b, _LONGEST, 0), strict=True)
        return torch.stack([_product(left, right) for left, right in pieces]).sum(0)
    whole_a, scale_a = quantized(a, 1)
    whole_b, scale_b = quantized(b, 0)
    return torch._int_mm(whole_a, whole_b).float() * scale_a * scale_b


def quantized(x: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Matrix `x` as int8 of the same shape and layout, and float32 scales that are shared along its dimension `terms`:
    ``x ≈ int8 · scale``, the largest of each row (or column) becomes ±127."""
    scale = x.abs().amax(terms, keepdim=True) / 127
    return (x * (1 / scale.clamp_min(1e-30))).round().to(torch.int8), scale


@cache
def int8_is_exact() -> bool:
    """Whether this processor keeps the sums of int8 products in 32 bits; some instructions saturate at 16."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, (32, 512), generator=random, dtype=torch.int8) for _ in range(2))
    a[:8], b[:8], b[8:16] = 127, -127, 127
    return bool(torch.equal(torch._int_mm(a, b.t()).double(), a.double() @ b.double().t()))
