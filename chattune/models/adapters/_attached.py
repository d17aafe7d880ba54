"""What LoRA and DoRA share: attaching, merging, and peft's format of their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chattune.models.adapters import _maps as maps
from chattune.models.adapters._low_rank import LowRank, Magnitudes

if TYPE_CHECKING:
    from chattune.models.adapters.lora import LoRA
    from chattune.models.language_model import LanguageModel

PREFIX = "base_model.model."  # peft wraps a model twice


def attach(adapter: LoRA, model: LanguageModel, seed: int, kind: type[LowRank]) -> None:
    maps.freeze_all(model)
    wanted = maps.targets(model, adapter.targets, "train.adapter.targets")
    packed = adapter.base == "nf4"
    for name in maps.linear_maps(model) if packed else wanted:
        linear = model.get_submodule(name)
        assert isinstance(linear, maps.Map)
        if name in wanted:
            maps.replace(model, name, kind(linear, pieces=wanted[name], **_sizes(adapter), packed=packed))
        else:
            maps.replace(model, name, LowRank(linear, [], **_sizes(adapter), packed=True))
    # As peft has it: Kaiming's uniform with slope √5, which is ±1/√inputs.
    maps.fill(model, lambda name: ".down." in name, lambda weight: weight.shape[1] ** -0.5, seed)


def merge(model: LanguageModel) -> None:
    for name, module in attached(model).items():
        maps.replace(model, name, module.merged())
    maps.freeze_all(model, False)


def detach(model: LanguageModel) -> None:
    for name, module in attached(model).items():
        maps.replace(model, name, module.detached())
    maps.freeze_all(model, False)


def attached(model: LanguageModel) -> dict[str, LowRank]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


def tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The factors under peft's names. Pieces that other libraries hold as one matrix become one pair of a higher rank, whose
    B is block-diagonal."""
    found: dict[str, Tensor] = {}
    for module in attached(model).values():
        for name, places in _by_name(module).items():
            downs, ups = ([factors[place] for place in places] for factors in (module.down, module.up))
            found[f"{PREFIX}{name}.lora_A.weight"] = torch.cat([down.detach() for down in downs])
            found[f"{PREFIX}{name}.lora_B.weight"] = _block_diagonal([up.detach() for up in ups])
            if isinstance(module, Magnitudes):
                lengths = [module.magnitude[place].detach() for place in places]
                found[f"{PREFIX}{name}.lora_magnitude_vector"] = torch.cat(lengths)
    return found


@torch.no_grad()
def load(model: LanguageModel, found: dict[str, Tensor]) -> None:
    maps.require_same(tensors(model), found)
    for module in attached(model).values():
        for name, places in _by_name(module).items():
            row = column = 0
            for place in places:
                down, up = module.down[place], module.up[place]
                down.copy_(found[f"{PREFIX}{name}.lora_A.weight"][row : row + len(down)])
                up.copy_(found[f"{PREFIX}{name}.lora_B.weight"][column : column + len(up), row : row + len(down)])
                if isinstance(module, Magnitudes):
                    module.magnitude[place].copy_(found[f"{PREFIX}{name}.lora_magnitude_vector"][column : column + len(up)])
                row, column = row + len(down), column + len(up)


def config(adapter: LoRA, model: LanguageModel, weighted: bool) -> dict[str, Any]:
    """The entries of peft's ``adapter_config.json``."""
    every = [piece.name for pieces in maps.linear_maps(model).values() for piece in pieces] or []
    adapted = {name: len(places) for module in attached(model).values() for name, places in _by_name(module).items()}
    last = {name.rpartition(".")[2] for name in adapted}
    whole = [word for word in last if all(name in adapted for name in every if name.rpartition(".")[2] == word)]
    joined = {name: adapter.rank * count for name, count in adapted.items() if count > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rank_stabilised,
        "use_dora": weighted,
        "target_modules": sorted(whole) if len(whole) == len(last) else sorted(adapted),
        "rank_pattern": joined,
        # peft divides by the rank of the pair, which a joined one has more of
        "alpha_pattern": {name: adapter.scale * (rank**0.5 if adapter.rank_stabilised else rank) for name, rank in joined.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined


def _by_name(module: LowRank) -> dict[str, list[int]]:
    """Public name → places of the pieces that it is made of."""
    found: dict[str, list[int]] = {}
    for place, piece in enumerate(module.pieces):
        found.setdefault(piece.name, []).append(place)
    return found


def _sizes(adapter: LoRA) -> dict[str, Any]:
    return {"rank": adapter.rank, "scale": adapter.scale, "drop": adapter.dropout}
