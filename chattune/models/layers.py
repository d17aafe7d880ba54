"""Layers that families are made of: RMSNorm, rotary positions, attention, activations, dropout, linear maps.

Legend: rows × time tokens; `heads` query heads, `kv` key-value heads, `head` numbers in each. Fresh weights are left empty
here: the family that uses a layer fills it. Where the processor has no fused kernel for a formula and its gradient, both are
written out for it (a third to a half of the passes over memory); elsewhere, and under a compiler, the plain formula stands. Without
gradients the same numbers come without the machinery of autograd, which takes longer than the work on a single token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from chattune.models.fresh import Settling
from chattune.models.int8 import int8_linear

PLAIN_ATTENTION_LIMIT = 512  # keys; up to here two matrix products and a softmax beat the processor's flash kernel


class Linear(nn.Module):
    """``x Wᵀ``, or ``x Wᵀ + b``: a linear map; `weight` is (outputs, inputs), `bias` (outputs) or none.

    With `int8` its products are taken in eight-bit integers while it is training (`models.int8`).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.int8 = False
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.int8 and self.training:
            product = int8_linear(x, self.weight)
            return product if self.bias is None else product + self.bias
        return F.linear(x, self.weight, self.bias)


class RMSNorm(Settling):
    """``x / √(mean(x²) + ε) · (weight + offset)`` over the last dimension. Source: Zhang & Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, width: int, epsilon: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.epsilon, self.offset = epsilon, offset

    def scale(self) -> Tensor:
        """(width,) what the normalised numbers are multiplied by; 1 in a fresh model."""
        return self.weight if self.offset == 0.0 else self.weight + self.offset

    def settle(self) -> None:
        self.weight.fill_(1.0 - self.offset)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale(), self.epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The formula of `RMSNorm`; `weight` is broadcast over `x`. The root is taken in float32."""
    if _has_fused_kernels(x):
        root = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
        return (x.float() * root).to(x.dtype) * weight
    if not torch.is_grad_enabled():
        return x * _inverse_root(x, epsilon) * weight
    normed: Tensor = _RMSNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return normed


def _inverse_root(x: Tensor, epsilon: float) -> Tensor:
    wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
    root: Tensor = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return root.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        root = _inverse_root(x, epsilon)
        normed = x * root
        ctx.save_for_backward(normed, root, weight)
        result: Tensor = normed * weight
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normed, root, weight = ctx.saved_tensors
        # y = n·w with n = x·r:  dx = r (g·w − n · mean(g·w·n)), dw = Σ g·n
        product = gradient * normed
        shared = product.dim() - weight.dim()
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = product.flatten(0, shared - 1).sum(0) if shared else product
        mean = (product * weight).mean(-1, keepdim=True) if weight.dim() > 1 else (product @ (weight / weight.shape[0])).unsqueeze(-1)
        return torch.addcmul(gradient * weight, normed, mean, value=-1).mul_(root), for_weight, None


def swiglu(x: Tensor) -> Tensor:
    """``silu(gate) · up`` where (…, 2·hidden) `x` holds gate and up side by side. Source: Shazeer 2020, arXiv:2002.05202."""
    if _has_fused_kernels(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
    if not torch.is_grad_enabled():
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
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


def _gated(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return activation(gate) * up

    return function


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu_squared(x: Tensor) -> Tensor:
    if _has_fused_kernels(x):
        return F.relu(x).square()
    squared: Tensor = _ReLUSquared.apply(x)  # type: ignore[no-untyped-call]
    return squared


class _ReLUSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        result: Tensor = (gradient * positive).mul_(2.0)
        return result


# (…, 2·hidden) → (…, hidden): gate and up side by side. Source: Shazeer 2020, arXiv:2002.05202.
GATED: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": swiglu, "geglu": _gated(F.gelu), "geglu_tanh": _gated(_gelu_tanh), "reglu": _gated(F.relu),
}  # fmt: skip
# (…, hidden) → (…, hidden). GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415; squared ReLU: So et al. 2021, arXiv:2109.08668.
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu_tanh": _gelu_tanh, "relu": F.relu, "relu_squared": _relu_squared, "silu": F.silu,
}  # fmt: skip


def softcap(x: Tensor, cap: float) -> Tensor:
    """``cap · tanh(x / cap)``: nearly `x` where it is small, never beyond ±cap. Source: Gemma Team 2024, arXiv:2408.00118."""
    return torch.tanh(x / cap) * cap


def rotary_speeds(head: int, theta: float, device: torch.device) -> Tensor:
    """(head/2,) radians a position: ``theta^(−2i/head)``, in float32."""
    return 1.0 / theta ** (torch.arange(0, head, 2, dtype=torch.float32, device=device) / head)


def llama3_speeds(speeds: Tensor, factor: float, low: float, high: float, context: int) -> Tensor:
    """`speeds` for a context `factor` times longer: wavelengths above context/low are stretched by `factor`, those below context/high
    stay, and between them the one goes over into the other. Source: Llama Team 2024, arXiv:2407.21783, as in transformers."""
    turns = context * speeds / (2 * math.pi)  # within the old context
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # of the speed as it was
    return (1 - share) * speeds / factor + share * speeds


def rotary(positions: Tensor, head: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows, time, 1, head/2) of the angles ``position · theta^(−2i/head)``, computed in float32."""
    return turns(positions, rotary_speeds(head, theta, positions.device), dtype)


def turns(positions: Tensor, speeds: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows, time, 1, head/2) of the angles ``position · speed``, computed in float32."""
    cos, sin = _turns_once(positions, speeds, dtype) if torch.compiler.is_compiling() else _turns(positions, speeds, dtype)
    return cos, sin


def _turns(positions: Tensor, speeds: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = positions[:, :, None, None].float() * speeds
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (rows, time, heads, head) by position: pairs are (i, i + head/2), as Llama in transformers has it.

    Source: Su et al. 2021, arXiv:2104.09864 (there the pairs are neighbours; a permutation of the weights turns one into the other).
    """
    if _has_fused_kernels(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    if not torch.is_grad_enabled():
        return _turned(x, cos, sin, 1.0)
    turned: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, sin, -1.0), None, None  # a turn's transpose is the turn back


def _turned(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    result = torch.empty_like(x)
    for own, other, out, sign in zip(x.chunk(2, dim=-1), x.chunk(2, dim=-1)[::-1], result.chunk(2, dim=-1), (-way, way), strict=True):
        torch.mul(own, cos, out=out).addcmul_(other, sin, value=sign)
    return result


def causal_bias(time: int, dtype: torch.dtype, device: torch.device, window: int | None = None) -> Tensor:
    """(1, 1, time, time): 0 where a position may look, −∞ at later ones and, with a `window`, at those that many or more before it."""
    bias = torch.full((time, time), -math.inf, dtype=dtype, device=device)
    if window is None or window >= time:
        return bias.triu_(1)[None, None]
    return bias.masked_fill_(_near(torch.arange(time, device=device), torch.arange(time, device=device), window), 0.0)[None, None]


def window_bias(segments: Tensor, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """(rows, 1, time, time): 0 where a position may look, −∞ at later ones, at other windows of the row, and beyond `window`.

    Padding (−1) looks at padding before it, so that every position sees at least itself and nothing becomes NaN.
    """
    bias: Tensor = (_window_bias_once if torch.compiler.is_compiling() else _window_bias)(segments, dtype, window)
    return bias


def _window_bias(segments: Tensor, dtype: torch.dtype, window: int | None) -> Tensor:
    time = segments.shape[1]
    allowed = (segments[:, :, None] == segments[:, None, :]).tril_()
    if window is not None and window < time:
        allowed &= _near(torch.arange(time, device=segments.device), torch.arange(time, device=segments.device), window)
    return torch.full((len(segments), time, time), -math.inf, dtype=dtype, device=segments.device).masked_fill_(allowed, 0.0)[:, None]


# A compiler would compute angles and masks again inside every layer that reads them, forward and backward (7 % of a step of 8 × 512
# on a processor): behind these names they are computed once.
_turns_once = torch.library.custom_op("chattune::turns", _turns, mutates_args=())
_window_bias_once = torch.library.custom_op("chattune::window_bias", _window_bias, mutates_args=())


@_turns_once.register_fake
def _(positions: Tensor, speeds: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos = speeds.new_empty((*positions.shape, 1, len(speeds)), dtype=dtype)
    return cos, torch.empty_like(cos)


@_window_bias_once.register_fake
def _(segments: Tensor, dtype: torch.dtype, window: int | None) -> Tensor:
    rows, time = segments.shape
    return segments.new_empty((rows, 1, time, time), dtype=dtype)


def cache_bias(slots: Tensor, dtype: torch.dtype, window: int | None = None, first: int = 0) -> Tensor | None:
    """(rows, 1, time, keys): 0 at slots up to the token's own and within `window`, −∞ elsewhere; none where every token sees all.

    The keys are those from slot `first` on.
    """
    oldest, newest = int(slots.min()), int(slots.max())
    if slots.shape[1] == 1 and oldest == newest and (window is None or newest - first < window):
        return None
    keys = torch.arange(first, newest + 1, device=slots.device)
    hidden = keys > slots[:, :, None] if window is None else ~_near(slots, keys, window)
    return torch.zeros(hidden.shape, dtype=dtype, device=slots.device).masked_fill_(hidden, -math.inf)[:, None]


def _near(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """(…, queries, keys): true at the query's own place and the ``window − 1`` before it."""
    apart = queries[..., None] - keys
    return (apart >= 0) & (apart < window)


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool = False, drop: float = 0.0, scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """``softmax(scale · q kᵀ + bias) v`` → (rows, heads, time, head).

    `q`: (rows, heads, time, head); `k`, `v`: (rows, kv, keys, head), each shared by heads/kv query heads in a row; `bias`:
    (rows or 1, 1, time, keys) or none. `causal` tells that the bias is the plain causal one, for kernels that know it. `scale`:
    1/√head where none is given. Scores are kept within ±`cap` before the bias (`softcap`). Chooses the kernel by device and number
    of queries and keys; none of the fused ones knows a cap, and the processor's repeats keys that are shared.
    """
    single = q.shape[2] == 1 and q.shape[1] == k.shape[1]
    if cap is None and (q.is_cuda or single or k.shape[2] > PLAIN_ATTENTION_LIMIT):
        known = causal and q.shape[2] == k.shape[2]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if known else bias, dropout_p=drop, is_causal=known, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
    rows, heads, time, head = q.shape
    kv, keys = k.shape[1], k.shape[2]
    # Query heads that share a key-value head stand one above the other, so that keys are never repeated.
    q = q.reshape(rows * kv, heads // kv * time, head)
    k, v = k.reshape(rows * kv, keys, head), v.reshape(rows * kv, keys, head)
    scale = head**-0.5 if scale is None else scale
    if cap is None and bias is not None and bias.shape[0] == 1 and heads == kv:
        scores = torch.baddbmm(bias[0], q, k.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(q * scale, k.transpose(1, 2))
        scores = scores if cap is None else softcap(scores, cap)
        if bias is not None:
            # The tangent's gradient is taken from its own result, so that one may not be written over.
            scores = scores.view(rows, heads, time, keys)
            scores = (scores.add_(bias) if cap is None else scores + bias).view(rows * kv, heads // kv * time, keys)
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
