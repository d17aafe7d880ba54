"""Products of linear maps in eight-bit integers, forward and backward, for training: `int8_linear`.

Each operand is rounded to 127 steps, each way, of scales of its own: one for each row or column that a sum runs along; the sums are
exact in int32. Weights, their gradients, embedding and head, norms, attention and the optimizer stay float32.

On processors with VNNI PyTorch multiplies integers in a quarter of a float32 product's time. On others a compiled product
(``int8.cpp``, built on first use) does it, bit for bit the same; where it cannot run either, `uncompiled` says why.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chattune.core.native import built, switched_off, threads_of_torch

SOURCE = Path(__file__).with_name("int8.cpp")
_LONGEST = 1 << 16  # terms of one sum: 127² times as many stay below 2³¹
_ALONE = 1 << 18  # multiplications that are not worth a second thread


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
        return int8_product(x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x = int8_product(gradient, weight) if ctx.needs_input_grad[0] else None
        for_weight = int8_product(gradient.t(), x) if ctx.needs_input_grad[1] else None
        return for_x, for_weight


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` of float32 (rows, terms) and (terms, columns); rows of `a` and columns of `b` are rounded to int8 by scales of their own.

    Contiguous operands and transposed ones are read as they lie.
    """
    if a.shape[1] > _LONGEST:
        pieces = zip(torch.split(a, _LONGEST, 1), torch.split(b, _LONGEST, 0), strict=True)
        return torch.stack([int8_product(left, right) for left, right in pieces]).sum(0)
    if a.dtype == b.dtype == torch.float32 and a.device.type == "cpu" and _compiled():
        product: Tensor = _by_kernel(a, b)
        return product
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
    """Whether the sums of int8 products are right here: some processors' instructions, which PyTorch uses, saturate at 16 bits."""
    if not uncompiled():
        return True  # it was compared before
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, (32, 512), generator=random, dtype=torch.int8) for _ in range(2))
    a[:8], b[:8], b[8:16] = 127, -127, 127
    return bool(torch.equal(torch._int_mm(a, b.t()).double(), a.double() @ b.double().t()))


# ---- the compiled product ----


def uncompiled() -> str:
    """Why PyTorch computes the products of integers here, as a clause; ``""`` where the compiled product does."""
    if switched_off():
        return "CHATTUNE_NATIVE=0 turns the compiled product off"
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"):
        return "PyTorch's own product is the faster one on a processor with VNNI"
    return _loaded()[1]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _compiled() -> bool:
    return not uncompiled()


@cache
def _loaded() -> tuple[Callable[..., int] | None, str]:
    """The compiled product, or none and why."""
    library, reason = built(SOURCE)
    if library is None:
        return None, reason
    if not hasattr(library, "chattune_int8_product"):
        return None, "the compiled product is for processors with AVX2"
    function = library.chattune_int8_product
    matrix, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    function.argtypes = [*(matrix, size, size) * 2, matrix, size, size, size, number, matrix]
    function.restype = number
    if not _agrees(function):
        return None, "the compiled product computes something else than PyTorch on this processor"
    return function, ""


def _agrees(function: Callable[..., int]) -> bool:
    """Whether `function` gives PyTorch's bits in all layouts, in sizes that fill no tile and in several pieces."""
    random = torch.Generator().manual_seed(0)
    right: list[bool] = []
    for rows, terms, columns in ((1, 1, 1), (7, 33, 17), (205, 1100, 70)):
        a, b = torch.randn(rows, terms, generator=random), torch.randn(terms, columns, generator=random)
        a[0], b[:, 0] = 127.0, -127.0  # the largest sums
        (whole_a, scale_a), (whole_b, scale_b) = quantized(a, 1), quantized(b, 0)
        wanted = (whole_a.double() @ whole_b.double()).float() * scale_a * scale_b
        for left in (a, a.t().contiguous().t()):
            right += [torch.equal(_called(function, left, other), wanted) for other in (b, b.t().contiguous().t())]
    return all(right)


def _called(function: Callable[..., int], a: Tensor, b: Tensor) -> Tensor:
    """``a b`` by the compiled `function`, on as many threads as PyTorch uses."""
    if 0 in (*a.shape, *b.shape):
        return a.new_zeros(a.shape[0], b.shape[1])
    out = a.new_empty(a.shape[0], b.shape[1])
    a, b = (x if 1 in _steps(x) else x.contiguous() for x in (a, b))
    threads = torch.get_num_threads() if out.numel() * a.shape[1] > _ALONE else 1
    failed = function(
        a.data_ptr(), *_steps(a), b.data_ptr(), *_steps(b), out.data_ptr(), *a.shape, b.shape[1], threads, threads_of_torch()[0]
    )
    if failed:
        raise MemoryError(f"no memory for a product of {tuple(a.shape)} and {tuple(b.shape)}")
    return out


def _steps(x: Tensor) -> tuple[int, int]:
    """Numbers from one row to the next, and from one column to the next; a dimension of one has no next."""
    rows, columns = x.stride()
    return (rows if x.shape[0] > 1 else 1, columns if x.shape[1] > 1 else 1)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    function, _ = _loaded()
    assert function is not None
    return _called(function, a, b)


# Behind this name a compiler of graphs sees one operation, which it leaves as it is.
_by_kernel = torch.library.custom_op("chattune::int8_product", _kernel, mutates_args=())


@_by_kernel.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])
