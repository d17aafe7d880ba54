"""The keys and values that `prefix` puts before those of the conversation, in the attention of the GPT family.

Legend: n learned tokens, `kv` key-value heads, `head` numbers in each. Keys are learned as they are after rotation; a query at
position p sees them as if they stood at position 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chattune.core.errors import SettingError
from chattune.models.adapters import _maps as maps
from chattune.models.families._gpt import GPTModel
from chattune.models.layers import rotate

if TYPE_CHECKING:
    from chattune.models.adapters.prefix import Prefix
    from chattune.models.language_model import LanguageModel

_NAME = "prompt_embeddings"  # peft's: (n, layers · 2 · kv · head)


class Learned(nn.Module):
    """``keys`` and ``values`` (kv, n, head) before those of (rows, kv, time, head); every token may look at them."""

    def __init__(self, kv: int, tokens: int, head: int, like: Tensor) -> None:
        super().__init__()
        self.keys, self.values = nn.Parameter(like.new_empty(kv, tokens, head)), nn.Parameter(like.new_zeros(kv, tokens, head))

    def forward(self, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        rows = len(keys)
        keys = torch.cat([self.keys.to(keys.dtype).expand(rows, -1, -1, -1), keys], 2)
        values = torch.cat([self.values.to(values.dtype).expand(rows, -1, -1, -1), values], 2)
        if bias is not None:
            bias = nn.functional.pad(bias, (self.keys.shape[1], 0))
        return keys, values, bias


def attach(adapter: Prefix, model: LanguageModel, seed: int) -> None:
    if not isinstance(model, GPTModel):
        raise SettingError(
            f"the {model.family.name} family has no attention that takes a prefix.", path="train.adapter", value=adapter.name,
            rule="the gpt family", hint="Choose lora, which fits every family made of linear maps.",
        )
    maps.freeze_all(model)
    for layer in _layers(model):
        layer.prefix = Learned(layer.kv, adapter.tokens, layer.head, layer.qkv.weight).train(model.training)
    maps.fill(model, lambda name: name.endswith("prefix.keys"), lambda weight: weight.shape[2] ** -0.5, seed)


def detach(model: LanguageModel) -> None:
    for layer in _layers(model):
        layer.prefix = None
    maps.freeze_all(model, False)


@torch.no_grad()
def tensors(adapter: Prefix, model: LanguageModel) -> dict[str, Tensor]:
    pairs = [
        torch.stack([_turned(adapter.tokens, model, number, layer.prefix.keys, 1.0), layer.prefix.values])
        for number, layer in enumerate(_layers(model))
    ]
    return {_NAME: torch.stack(pairs).permute(3, 0, 1, 2, 4).flatten(1)}  # (layers, 2, kv, n, head) → (n, …)


@torch.no_grad()
def load(adapter: Prefix, model: LanguageModel, found: dict[str, Tensor]) -> None:
    maps.require_same(tensors(adapter, model), found)
    layers = _layers(model)
    pairs = found[_NAME].view(adapter.tokens, len(layers), 2, layers[0].kv, layers[0].head).permute(1, 2, 3, 0, 4)
    for number, (layer, (keys, values)) in enumerate(zip(layers, pairs, strict=True)):
        layer.prefix.keys.copy_(_turned(adapter.tokens, model, number, keys, -1.0))
        layer.prefix.values.copy_(values)


def config(adapter: Prefix, model: LanguageModel) -> dict[str, Any]:
    layers = _layers(model)
    return {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "num_virtual_tokens": adapter.tokens,
        "num_layers": len(layers),
        "num_attention_heads": layers[0].kv,
        "token_dim": layers[0].kv * layers[0].head,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": layers[0].kv * layers[0].head,
        "prefix_projection": False,
        "inference_mode": True,
    }


def _turned(tokens: int, model: LanguageModel, number: int, keys: Tensor, way: float) -> Tensor:
    """`keys` (kv, n, head) of a layer as a query sees them that counts its position from behind the prefix (`way` 1), or back."""
    assert isinstance(model, GPTModel)
    frame = model._frame(torch.tensor([[tokens]], device=keys.device), None, None, None)
    turn = (frame.local if _layers(model)[number].local else frame.everything).turn
    if turn is None:
        return keys
    cos, sin = (table.to(keys.dtype) for table in turn)  # (1, 1, 1, head/2)
    return rotate(keys[None], cos, way * sin)[0]


def _layers(model: LanguageModel) -> list[Any]:
    return [block.attention for block in model.get_submodule("blocks").children()]
