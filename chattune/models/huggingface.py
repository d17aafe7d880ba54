"""The GPT family in Hugging Face's words: names of weights and entries of ``config.json``, for Llama and Qwen3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chattune.core.errors import ArtifactError
from chattune.models.families.gpt import GPT

if TYPE_CHECKING:
    from chattune.models.families._gpt import GPTModel

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def exported(model: GPTModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under transformers' names, fused matrices taken apart, and the model's part of ``config.json``."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        for part, tensor in zip(_public(name), weight.split(model.splits(name) or len(weight)), strict=True):
            tensors[part] = tensor
    return tensors, _config(model.family, model.vocabulary)


def own(model: GPTModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `exported`: public names to the model's own, fused again."""
    return {name: torch.cat([tensors[part] for part in _public(name)]) for name in model.state_dict()}


def family_of(config: dict[str, Any], path: str) -> GPT:
    """The GPT whose network a ``config.json`` of transformers describes, or an `ArtifactError` that says what differs."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ArtifactError(
            f"describes a model of type '{kind}'.", path=path, value=kind, rule=f"one of {', '.join(ARCHITECTURES)}",
            hint="chattune reads its own models and plain Llama and Qwen3 ones.",
        )
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        raise ArtifactError("has no hidden_size and num_attention_heads.", path=path, rule="whole numbers")
    expected = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "mlp_bias": (config.get("mlp_bias", False), False),
        "head_dim": (config.get("head_dim") or width // heads, width // heads),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "use_sliding_window": (config.get("use_sliding_window", False), False),
        "quantization_config": (config.get("quantization_config"), None),
    }
    for key, (found, asked) in expected.items():
        if found != asked:
            raise ArtifactError(
                f"{key} is {found!r}.", path=path, value=found, rule=f"{key} {asked!r}", hint="Such a model cannot be read."
            )
    return GPT(
        layers=config.get("num_hidden_layers"), width=width, heads=heads, kv_heads=config.get("num_key_value_heads", heads),
        hidden=config.get("intermediate_size"), context=config.get("max_position_embeddings"), qk_norm=kind == "qwen3",
        tied=config.get("tie_word_embeddings", False), rope_theta=theta, norm_epsilon=config.get("rms_norm_eps", 1e-6),
    )  # fmt: skip


def _config(family: GPT, vocabulary: int) -> dict[str, Any]:
    assert family.width and family.heads
    kind = "qwen3" if family.qk_norm else "llama"
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": family.width,
        "intermediate_size": family.hidden,
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.kv_heads,
        "head_dim": family.width // family.heads,
        "hidden_act": "silu",
        "max_position_embeddings": family.context,
        "rms_norm_eps": family.norm_epsilon,
        "rope_theta": family.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": family.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": family.tied,
        "use_cache": True,
        "dtype": "float32",
    } | ({"mlp_bias": False} if kind == "llama" else {"use_sliding_window": False})


def _public(name: str) -> list[str]:
    """The names under which transformers holds the matrices of our parameter `name`."""
    fixed = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
    if name in fixed:
        return [fixed[name]]
    _, layer, rest = name.split(".", 2)
    parts = {
        "attention_norm.weight": ["input_layernorm"],
        "attention.qkv.weight": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention.output.weight": ["self_attn.o_proj"],
        "attention.query_norm.weight": ["self_attn.q_norm"],
        "attention.key_norm.weight": ["self_attn.k_norm"],
        "feed_forward_norm.weight": ["post_attention_layernorm"],
        "feed_forward.gate_up.weight": ["mlp.gate_proj", "mlp.up_proj"],
        "feed_forward.output.weight": ["mlp.down_proj"],
    }[rest]
    return [f"model.layers.{layer}.{part}.weight" for part in parts]
