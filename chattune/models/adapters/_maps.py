"""The linear maps of a model: which ones a pattern means, and one map put in another's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from chattune.core.errors import CorruptError, SettingError
from chattune.core.seeds import derived
from chattune.models.layers import Linear
from chattune.models.patterns import meant, refuse_unused

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

Map = Linear | nn.Linear


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a map: one of the matrices that are stored as one; `name` is what other libraries call it."""

    name: str
    start: int
    stop: int


def linear_maps(model: LanguageModel) -> dict[str, list[Piece]]:
    """Every linear map inside `model` by the name of its module, with its pieces; not the head and no tables."""
    head = model.head_weight()
    return {
        name: _pieces(model, name, module)
        for name, module in model.named_modules()
        if isinstance(module, (Linear, nn.Linear)) and module.weight is not head
    }


def targets(model: LanguageModel, patterns: tuple[str, ...], path: str) -> dict[str, list[Piece]]:
    """The maps, and of each the pieces, that the patterns mean, by our names or those of transformers; all for none."""
    every = linear_maps(model)
    if not every:
        raise SettingError(
            f"a model of the {model.family.name} family has no linear map inside.", path=path, value=model.family.name,
            rule="a family made of linear maps, such as gpt", hint="Train all of its weights, or freeze some by train.freeze.",
        )
    if not patterns:
        return every
    refuse_unused(patterns, [name for own, pieces in every.items() for name in (own, *(p.name for p in pieces))], path)
    chosen = {
        own: [p for p in pieces if any(meant(pattern, name) for pattern in patterns for name in (own, p.name))]
        for own, pieces in every.items()
    }
    return {own: pieces for own, pieces in chosen.items() if pieces}


def replace(model: LanguageModel, name: str, module: nn.Module) -> None:
    """Put `module` where the module called `name` was, in the same mode."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module.train(model.training))


def freeze_all(model: LanguageModel, frozen: bool = True) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)


def plain(weight: Tensor, bias: Tensor | None) -> Linear:
    """An ordinary linear map that holds these."""
    with torch.device("meta"):
        linear = Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight.detach())
    linear.bias = None if bias is None else nn.Parameter(bias.detach())
    return linear


@torch.no_grad()
def fill(model: LanguageModel, wanted: Callable[[str], bool], bound: Callable[[Tensor], float], seed: int) -> None:
    """Draw the parameters whose name is `wanted` uniformly from ±`bound`, each from a stream of its own."""
    for name, parameter in model.named_parameters():
        if wanted(name):
            limit = bound(parameter)
            random = torch.Generator().manual_seed(derived(seed, "init", name))
            parameter.copy_(torch.empty(parameter.shape).uniform_(-limit, limit, generator=random))


def require_same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """`CorruptError` for the first tensor that is missing, unknown, of another shape or not finite."""
    for name in sorted(expected.keys() ^ found.keys()):
        raise CorruptError(
            f"{'lacks' if name in expected else 'has the unknown tensor'} {name}.", path="adapter_model.safetensors", value=name,
            rule="the tensors of the adapter that config.json names",
        )
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape or not bool(found[name].isfinite().all()):
            raise CorruptError(
                f"{name} does not fit.", path="adapter_model.safetensors", value=name, rule=f"finite numbers, {tuple(tensor.shape)}",
            )


def _pieces(model: LanguageModel, name: str, module: Map) -> list[Piece]:
    own = f"{name}.weight"
    rows, public = model.splits(own) or (len(module.weight),), model.public_names(own)
    if len(public) != len(rows):  # stored as one elsewhere, too
        public = (public[0],) * len(rows)
    pieces, start = [], 0
    for count, called in zip(rows, public, strict=True):
        pieces.append(Piece(called.removesuffix(".weight"), start, start + count))
        start += count
    return pieces
