"""Fresh weights: every parameter of a model is filled from a stream of its own, named by the seed and the parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chattune.core.seeds import derived
from chattune.models.initializers import Initializer, Place, Role

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

Outputs = Literal["zero", "scaled", "same"]


class Settling(nn.Module):
    """A module some of whose numbers follow from its filled weights, or stand in buffers: `settle` sets them."""

    def settle(self) -> None:
        """Called once, after the fill."""
        raise NotImplementedError


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules that are made in it take no memory, and their own ways to fill themselves do nothing: to draw numbers for no memory
    torch would load its compiler, which takes two seconds."""
    with torch.device("meta"), _Undrawn():
        yield


def allocated(model: nn.Module, device: str = "cpu") -> None:
    """Give a model that is `unfilled` memory, with numbers as they come. As `to_empty`, which loads a symbolic algebra (0.6 s)."""
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))  # type: ignore[no-untyped-call]


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def usual_role(name: str, module: nn.Module) -> Role:
    """`module` owns the parameter `name`. Tables are embeddings and the model's own ``output``; an ``output`` further in is the
    matrix by which a branch adds to the residual stream."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if name == "output.weight":
        return "head"
    return "branch_output" if name.endswith(".output.weight") else "matrix"


@torch.no_grad()
def fill(
    model: LanguageModel, init: Initializer, seed: int, *, outputs: Outputs = "same", branches: int = 1,
    role: Callable[[str, nn.Module], Role] = usual_role,
) -> None:
    """Fill all parameters of `model`, whatever they hold: matrices by `init`, vectors with 1, those named ``bias`` with 0.

    `outputs`: what `branch_output` matrices begin as: zero, as `init` says (same), or that divided by √branches (scaled);
    `branches`: residual branches of the whole model.
    """
    for name, weight in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if weight.ndim < 2:
            weight.fill_(0.0 if name.rpartition(".")[2].startswith("bias") else 1.0)
            continue
        kind = role(name, owner)
        if kind == "branch_output" and outputs == "zero":
            weight.zero_()
            continue
        random = torch.Generator().manual_seed(derived(seed, "init", name))
        for part in torch.split(weight, [*model.splits(name)] or len(weight)) if init.by_matrix else (weight,):
            init.fill(part, _place(name, part, kind, branches), random)
        if kind == "branch_output" and outputs == "scaled":
            weight.div_(branches**0.5)
    for module in model.modules():
        if isinstance(module, Settling):
            module.settle()


def _place(name: str, weight: Tensor, role: Role, branches: int) -> Place:
    taps = math.prod(weight.shape[2:])  # of a convolution
    return Place(name, weight.shape[1] * taps, weight.shape[0] * taps, role, branches)
