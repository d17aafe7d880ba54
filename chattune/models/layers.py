"""Layers that families are made of: RMSNorm, rotary positions, attention, SwiGLU, dropout, linear maps without bias.

Legend: rows × time tokens; `heads` query heads, `kv` key-value heads, `head` numbers in each. Fresh weights are left empty
here: the family that uses a layer fills it. Where the processor has no fused kernel for a formula and its gradient, both are
written out for it (a third to a half of the passes over memory); elsewhere, and under a compiler, the plain formula stands.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PLAIN_ATTENTION_LIMIT = 512  # keys; up to here two matrix products and a softmax beat the processor's flash kernel


class Linear(nn.Module):
    """``x Wᵀ``: a linear map without bias; `weight` is (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class RMSNorm(nn.Module):
    """``x / √(mean(x²) + ε) · weight`` over the last dimension. Source: Zhang & Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The formula of `RMSNorm`; `weight` is broadcast over `x`. The root is taken in float32."""
    if _has_fused_kernels(x):
        root = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
        return (x.float() * root).to(x.dtype) * weight
    normed: Tensor = _RMSNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        root = square.div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)
        normed = x * root
        ctx.save_for_backward(normed, root, weight)
        result: Tensor = normed * weight
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, root, weight = ctx.saved_tensors
        # y = n·w with n = x·r:  dx = r (g·w − n · mean(g·w·n)), dw = Σ g·n
        product = gradient * normed
        shared = product.dim() - weight.dim()
        for_weight = product.flatten(0, shared - 1).sum(0) if shared else product
        mean = (product * weight).mean(-1, keepdim=True) if weight.dim() > 1 else (product @ (weight / weight.shape[0])).unsqueeze(-1)
        return torch.addcmul(gradient * weight, normed, mean, value=-1).mul_(root), for_weight, None


def swiglu(x: Tensor) -> Tensor:
    """``silu(gate) · up`` where (…, 2·hidden) `x` holds gate and up side by side. Source: Shazeer 2020, arXiv:2002.05202."""
    if _has_fused_kernels(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
    product: Tensor = _SwiGLU.apply(x)  # type: ignore[no-untyped-call]
    return product


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        result = torch.empty_like(x)
        for_gate, for_up = result.chunk(2, dim=-1)
        torch.mul(F.silu(gate), gradient, out=for_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=for_gate)
        return result


def rotary(positions: Tensor, head: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows, time, 1, head/2) of the angles ``position · theta^(−2i/head)``, computed in float32."""
    speed = theta ** (-torch.arange(0, head, 2, dtype=torch.float32, device=positions.device) / head)
    angle = positions[:, :, None, None].float() * speed
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (rows, time, heads, head) by position: pairs are (i, i + head/2), as Llama in transformers has it.

    Source: Su et al. 2021, arXiv:2104.09864 (there the pairs are neighbours; a permutation of the weights turns one into the other).
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_bias(time: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, 1, time, time): 0 where a position may look, −∞ at later ones."""
    return torch.full((time, time), -math.inf, dtype=dtype, device=device).triu_(1)[None, None]


def window_bias(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, 1, time, time): 0 where a position may look, −∞ at later ones and at other windows.

    Padding (−1) looks at padding before it, so that every position sees at least itself and nothing becomes NaN.
    """
    time = segments.shape[1]
    allowed = (segments[:, :, None] == segments[:, None, :]).tril_()
    return torch.full((len(segments), time, time), -math.inf, dtype=dtype, device=segments.device).masked_fill_(allowed, 0.0)[:, None]


def cache_bias(slots: Tensor, dtype: torch.dtype) -> Tensor | None:
    """(rows, 1, time, keys): 0 at slots up to the token's own, −∞ after; none where every token sees all keys."""
    if slots.shape[1] == 1 and int(slots.min()) == int(slots.max()):
        return None
    later = torch.arange(int(slots.max()) + 1, device=slots.device) > slots[:, :, None]
    return torch.zeros(later.shape, dtype=dtype, device=slots.device).masked_fill_(later, -math.inf)[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool = False, drop: float = 0.0) -> Tensor:
    """``softmax(q kᵀ / √head + bias) v`` → (rows, heads, time, head).

    `q`: (rows, heads, time, head); `k`, `v`: (rows, kv, keys, head), each shared by heads/kv query heads in a row; `bias`:
    (rows or 1, 1, time, keys) or none. `causal` tells that the bias is the plain causal one, for kernels that know it.
    Chooses the kernel by device and number of keys.
    """
    if q.is_cuda or k.shape[2] > PLAIN_ATTENTION_LIMIT:
        known = causal and q.shape[2] == k.shape[2]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if known else bias, dropout_p=drop, is_causal=known, enable_gqa=q.shape[1] != k.shape[1]
        )
    rows, heads, time, head = q.shape
    kv, keys = k.shape[1], k.shape[2]
    # Query heads that share a key-value head stand one above the other, so that keys are never repeated.
    q = q.reshape(rows * kv, heads // kv * time, head)
    k, v = k.reshape(rows * kv, keys, head), v.reshape(rows * kv, keys, head)
    scale = head**-0.5
    if bias is not None and bias.shape[0] == 1 and heads == kv:
        scores = torch.baddbmm(bias[0], q, k.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(q * scale, k.transpose(1, 2))
        if bias is not None:
            scores = scores.view(rows, heads, time, keys).add_(bias).view_as(scores)
    weights = torch.softmax(scores, dim=-1)
    return torch.bmm(dropout(weights, drop), v).view(rows, heads, time, head)


def dropout(x: Tensor, drop: float) -> Tensor:
    """Zero a share `drop` of the numbers and divide the others by ``1 − drop``, so that the mean stays (inverted dropout).

    `drop` is the probability to drop, not to keep (the papers' p is the latter). On the processor eight bits decide on each
    number, so the share is rounded to a 256th; draws come from torch's default generator, which the training loop seeds.
    Source: Srivastava et al. 2014, JMLR 15.
    """
    if drop <= 0.0:
        return x
    if _has_fused_kernels(x):
        return F.dropout(x, drop)
    kept: Tensor = _Dropout.apply(x, max(1, min(255, round(drop * 256))))  # type: ignore[no-untyped-call]
    return kept


class _Dropout(torch.autograd.Function):
    """Dropout with one random byte a number, an eighth of the generator's work. The mask holds 0 or 1/(1 − drop) in the dtype of
    `x`: comparing into it and multiplying by it are several times faster than with a mask of truth values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        count = x.numel()
        noise = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)[:count]
        keep = torch.ge(noise, dropped, out=torch.empty(count, dtype=x.dtype)).mul_(256 / (256 - dropped)).view(x.shape)
        ctx.save_for_backward(keep)
        return x * keep

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return gradient * keep, None


def _has_fused_kernels(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling()
