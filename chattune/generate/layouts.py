"""Weights laid out for decoding. A token, or a few, against a whole matrix is a matter of reading it, and how fast that goes depends
on how its numbers lie: as they are, turned (inputs above outputs), or in the blocks of oneDNN. Measured once a process.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.models.layers import Linear

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

Product = Callable[[Tensor], Tensor]

FEW = 32  # rows up to which reading the matrix takes longer than multiplying by it
_SMALL = 1 << 17  # numbers of a matrix that is read in no time, wherever they lie
_WORTH = 1.1  # times as fast another layout must be to be taken: a clock is not exact, and it costs memory
_PROBES = {"wide": (2048, 512), "tall": (512, 2048)}  # outputs and inputs of the matrices measured
_COPIES = 6  # of each in each layout, so that they come from memory and not from a cache
_PATIENCE = 0.03  # seconds of a pass over them after which no further one is made: others are using the machine
_BLOCKED = 16  # rows that the blocks of oneDNN are made for; they serve any number


def plain(weight: Tensor, bias: Tensor | None) -> Product:
    """The product with the matrix as it is."""
    return lambda x: F.linear(x, weight, bias)


def turned(weight: Tensor, bias: Tensor | None) -> Product:
    """The product with the matrix stored (inputs, outputs): a row of it for each number of the input."""
    table = weight.t().contiguous()
    outputs = table.shape[1]
    if bias is None:
        return lambda x: torch.mm(x.reshape(-1, x.shape[-1]), table).view(*x.shape[:-1], outputs)
    return lambda x: torch.addmm(bias, x.reshape(-1, x.shape[-1]), table).view(*x.shape[:-1], outputs)


def blocked(weight: Tensor, bias: Tensor | None) -> Product:
    """The product with the matrix in oneDNN's blocks. `RuntimeError` or `AttributeError` where this PyTorch or processor has none."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _BLOCKED)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, packed, bias, "none", [], "")


LAYOUTS: dict[str, Callable[[Tensor, Tensor | None], Product]] = {"plain": plain, "turned": turned, "blocked": blocked}


@dataclass(frozen=True)
class Layouts:
    """Names of the fastest layouts of a matrix, for one row and for a few; `seconds`: what one row and eight rows took with them."""

    one: str
    few: str
    seconds: float

    @property
    def names(self) -> set[str]:
        return {self.one, self.few}


def fastest(dtype: torch.dtype, outputs: int, inputs: int) -> Layouts:
    """For matrices of about this shape. Measured at the first call for it and this number of threads: a fraction of a second."""
    return _fastest(dtype, "wide" if outputs >= inputs else "tall", torch.get_num_threads())


@cache
def _fastest(dtype: torch.dtype, shape: str, threads: int) -> Layouts:
    outputs, inputs = _PROBES[shape]
    with torch.inference_mode():
        weights = [torch.full((outputs, inputs), 0.01, dtype=dtype) for _ in range(_COPIES)]
        products = {name: found for name in LAYOUTS if (found := _products(name, weights)) is not None}
        one, few = (_seconds(products, torch.ones(rows, inputs, dtype=dtype)) for rows in (1, 8))
    return Layouts(_best(one), _best(few), one[_best(one)] + few[_best(few)])


def _products(name: str, weights: list[Tensor]) -> list[Product] | None:
    """None where this machine has no such layout."""
    try:
        return [LAYOUTS[name](weight, None) for weight in weights]
    except (RuntimeError, AttributeError):
        return None


def _seconds(products: dict[str, list[Product]], x: Tensor) -> dict[str, float]:
    """For each layout the best of three passes over its matrices, after one that warms up; layouts take turns."""
    best: dict[str, float] = {}
    for number in range(4):
        for name, own in products.items():
            began = time.perf_counter()
            for product in own:
                product(x)
            taken = time.perf_counter() - began
            best[name] = min(taken, best[name]) if number > 1 else taken
        if max(best.values()) > _PATIENCE:
            break
    return best


def _best(seconds: dict[str, float]) -> str:
    name = min(seconds, key=lambda each: seconds[each])
    return name if seconds["plain"] > _WORTH * seconds[name] else "plain"


@cache
def bfloat16_is_faster() -> bool:
    """Whether this processor decodes faster with weights in bfloat16 than in float32; it is not even asked without such products."""
    try:
        known = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (RuntimeError, AttributeError):
        return False
    if not known:
        return False
    real, short = (sum(fastest(dtype, *shape).seconds for shape in _PROBES.values()) for dtype in (torch.float32, torch.bfloat16))
    return real > _WORTH * short


class _Laid(nn.Module):
    """A linear map with the products of its layouts, beside its own for many rows; its parameters are those it is made of."""

    def __init__(self, weight: nn.Parameter | Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        layouts = fastest(weight.dtype, *weight.shape)
        laid = {name: LAYOUTS[name](weight.detach(), bias) for name in layouts.names}
        self.one, self.few = laid[layouts.one], laid[layouts.few]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows == 1:
            return self.one(x)
        return self.few(x) if rows <= FEW else F.linear(x, self.weight, self.bias)


def laid_out(model: LanguageModel) -> tuple[LanguageModel, Product]:
    """The model for decoding and its head: large matrices are laid out as is fastest here, all else is shared with `model`.

    Numbers are the same but for the order of sums. It costs the memory of the matrices again, twice where one row and a few are best
    served by different layouts. What `model` learns later is not seen. On other devices than the processor it is the model itself.
    """
    if model.device.type != "cpu":
        return model, model.head
    table = model.head_weight()
    with torch.inference_mode():
        laid = model
        if any(True for _ in _maps(model)):
            laid = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
            for parent, name, linear in [*_maps(laid)]:
                setattr(parent, name, _Laid(linear.weight, linear.bias))
        return laid, laid.head if table is None or table.numel() < _SMALL else _Laid(table)


def _maps(model: LanguageModel) -> Iterator[tuple[nn.Module, str, Linear]]:
    """Large linear maps inside the model that nothing watches, each with what holds it and its name there."""
    head = model.head_weight()
    for parent in model.modules():
        for name, child in parent.named_children():
            watched = child._forward_hooks or child._forward_pre_hooks
            if type(child) is Linear and child.weight is not head and child.weight.numel() >= _SMALL and not watched:
                yield parent, name, child
