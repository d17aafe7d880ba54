"""The GPT family's weights under Hugging Face's names: how each parameter of ours is put together from public tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chattune.models.architectures import architecture_of, config_of

if TYPE_CHECKING:
    from chattune.models.families._gpt import GPTModel


@dataclass(frozen=True)
class Piece:
    """A public tensor that holds rows `start` to `stop` of a parameter of ours; `turned`: as (inputs, outputs)."""

    name: str
    start: int
    stop: int
    turned: bool = False

    def of(self, parameter: Tensor) -> Tensor:
        """The part of our parameter that the public tensor holds, as a view in the public shape."""
        part = parameter[self.start : self.stop]
        return part.T if self.turned else part


def exported(model: GPTModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under transformers' names, fused matrices taken apart (views, no copies), and the model's part of ``config.json``.

    Our own names and no entries where no architecture of transformers computes the same.
    """
    architecture = architecture_of(model.family)
    if architecture is None:
        return dict(model.state_dict()), {}
    tensors = {piece.name: piece.of(weight) for name, weight in model.state_dict().items() for piece in pieces(model, name)}
    return tensors, config_of(architecture, model.family, model.vocabulary)


@torch.no_grad()
def take(model: GPTModel, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `exported`: each public tensor is read once, and copied to its place."""
    for name, weight in model.state_dict().items():
        for piece in pieces(model, name):
            piece.of(weight).copy_(tensors[piece.name])


def pieces(model: GPTModel, name: str) -> list[Piece]:
    """The public tensors that make up our parameter `name`, which may be of the model's own names."""
    architecture = architecture_of(model.family)
    rows = model.get_parameter(name).shape[0]
    if architecture is None:
        return [Piece(name, 0, rows)]
    if architecture.name == "gpt2":
        return [Piece(_gpt2_name(name), 0, rows, turned=name.startswith("blocks.") and model.get_parameter(name).ndim == 2)]
    found, start = [], 0
    for public, length in zip(_llama_names(name, model.family.norm_placement == "both"), model.splits(name) or (rows,), strict=True):
        found.append(Piece(public, start, start + length))
        start += length
    return found


_LLAMA_TOP = {"embedding": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_LLAMA_BLOCK = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.output": ("self_attn.o_proj",),
    "attention.query_norm": ("self_attn.q_norm",),
    "attention.key_norm": ("self_attn.k_norm",),
    "feed_forward_norm": ("post_attention_layernorm",),
    "feed_forward.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "feed_forward.output": ("mlp.down_proj",),
}
# With norms on both sides the name of the second norm goes to the one after attention.
_GEMMA_BLOCK = _LLAMA_BLOCK | {
    "attention_output_norm": ("post_attention_layernorm",),
    "feed_forward_norm": ("pre_feedforward_layernorm",),
    "feed_forward_output_norm": ("post_feedforward_layernorm",),
}
_GPT2_TOP = {"embedding": "transformer.wte", "position_embedding": "transformer.wpe", "norm": "transformer.ln_f", "output": "lm_head"}
_GPT2_BLOCK = {
    "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj", "feed_forward_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc", "feed_forward.output": "mlp.c_proj",
}  # fmt: skip


def _llama_names(name: str, both: bool) -> list[str]:
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return [f"{_LLAMA_TOP[module]}.{kind}"]
    _, layer, rest = module.split(".", 2)
    return [f"model.layers.{layer}.{part}.{kind}" for part in (_GEMMA_BLOCK if both else _LLAMA_BLOCK)[rest]]


def _gpt2_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{_GPT2_TOP[module]}.{kind}"
    _, layer, rest = module.split(".", 2)
    return f"transformer.h.{layer}.{_GPT2_BLOCK[rest]}.{kind}"
