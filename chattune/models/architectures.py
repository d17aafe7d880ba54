"""Architectures that other libraries know, as settings of the GPT family: ``config.json`` of transformers to settings and back.

Each says which settings its models always have and which they choose, so that a model is saved under a name only where that
name means the same network. Light: no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from chattune.core.errors import ArtifactError, CorruptError

if TYPE_CHECKING:
    from chattune.models.families.gpt import GPT

_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh", "reglu": "relu"}
_GPT2_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}
# What transformers writes, and what changes nothing in the network or its weights.
_HARMLESS = frozenset(
    """
    architectures model_type dtype torch_dtype transformers_version use_cache initializer_range bos_token_id eos_token_id pad_token_id
    attention_dropout resid_pdrop embd_pdrop attn_pdrop hidden_dropout summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout summary_use_proj pretraining_tp _name_or_path chattune cache_implementation
    task_specific_params vocab_size sliding_window_pattern _sliding_window_pattern chunk_size_feed_forward id2label label2id
    is_encoder_decoder output_attentions output_hidden_states return_dict problem_type gradient_checkpointing unsloth_fixed
    reorder_and_upcast_attn n_ctx max_window_layers layer_types use_sliding_window sliding_window
    """.split()  # noqa: SIM905 - readable
)


class Entries:
    """The entries of a ``config.json`` as they are asked for: what does not fit is collected, what nobody asked for is known."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config, self.asked = config, set[str]()
        self.wrong, self.malformed = list[str](), list[str]()  # what is not covered; what no model could have

    def get(self, key: str, default: Any = None) -> Any:
        """The entry, or the default where it is missing or null."""
        self.asked.add(key)
        value = self.config.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> Any:
        """A whole number from 1 on."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.malformed.append(f"{key} is {value!r}, not a whole number")
            return 1
        return value

    def number(self, key: str, default: float | None = None) -> Any:
        """A number above 0, or the default."""
        value = self.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf):
            self.malformed.append(f"{key} is {value!r}, not a number above 0")
            return default
        return value

    def truth(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.malformed.append(f"{key} is {value!r}, not true or false")
        return bool(value)

    def choice(self, key: str, choices: Mapping[str, str], default: str) -> str:
        """Our word for the entry, of `choices` (our word: theirs)."""
        value = self.get(key, default)
        ours = next((ours for ours, theirs in choices.items() if theirs == value), None)
        if ours is None:
            self.wrong.append(f"{key} is {value!r}, not one of {', '.join(choices.values())}")
        return ours or next(iter(choices))

    def must(self, key: str, *allowed: Any) -> None:
        """The entry is one of these; the first is the default."""
        if (value := self.get(key, allowed[0])) not in allowed:
            self.wrong.append(f"{key} is {value!r}, not {' or '.join(map(repr, allowed))}")

    def ignored(self) -> list[str]:
        return sorted(str(key) for key in self.config.keys() - self.asked - _HARMLESS)


@dataclass(frozen=True)
class Architecture:
    """One ``model_type`` of transformers.

    `fixed`: settings that all its models have, each with the values allowed; `reads` takes the rest from ``config.json``,
    `writes` gives the entries that are its own.
    """

    name: str
    class_name: str
    fixed: Mapping[str, tuple[Any, ...]]
    reads: Callable[[Entries], dict[str, Any]]
    writes: Callable[[GPT], dict[str, Any]]
    fits: Callable[[GPT], list[str]] = lambda family: []

    def misfits(self, family: GPT) -> list[str]:
        """The settings of a resolved `family` that this architecture cannot have; none: it computes the same."""
        values = {key: getattr(family, key) for key in self.fixed}
        return [f"{key} {value!r}" for key, value in values.items() if value not in self.fixed[key]] + self.fits(family)


def architecture_of(family: GPT) -> Architecture | None:
    """The architecture under which a resolved `family` is saved: the one it names, or the first that computes the same."""
    if family.saved_as is not None:
        return ARCHITECTURES[family.saved_as]
    return next((each for each in ARCHITECTURES.values() if not each.misfits(family)), None)


def family_of(config: Mapping[str, Any], path: str) -> tuple[GPT, list[str]]:
    """The GPT whose network a ``config.json`` of transformers describes, and the keys that were not followed.

    `ArtifactError` lists what the GPT family does not cover.
    """
    from chattune.models.families.gpt import GPT

    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ArtifactError(
            f"describes a model of type '{kind}'.", path=path, value=kind, rule=f"one of {', '.join(ARCHITECTURES)}",
            hint="The family `gpt` covers these; the family `hf` takes others through transformers.",
        )
    entries = Entries(config)
    settings = ARCHITECTURES[kind].reads(entries)
    entries.must("quantization_config", None)
    if entries.malformed:
        trouble = "; ".join(entries.malformed + entries.wrong)
        raise CorruptError(f"describes no model: {trouble}.", path=path, value=entries.malformed[0], rule="settings of a model")
    if entries.wrong:
        raise ArtifactError(
            f"{'; '.join(entries.wrong)}.", path=path, value=entries.wrong[0], rule=f"what chattune's gpt covers of {kind}",
            hint="The family `hf` takes such a model through transformers.",
        )
    try:
        family = GPT(**settings).resolved()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        trouble = f"{where} is {first.get('input')!r}: {first['msg']}"
        raise CorruptError(f"describes no model: {trouble}.", path=path, value=where, rule="settings of a model") from None
    found = architecture_of(family)
    if found is None or found.name != kind:
        family = family.changed(saved_as=kind).resolved()
    return family, entries.ignored()


def config_of(architecture: Architecture, family: GPT, vocabulary: int) -> dict[str, Any]:
    """The entries of ``config.json`` for a resolved `family`."""
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.name,
        "vocab_size": vocabulary,
        **architecture.writes(family),
        "tie_word_embeddings": family.tied,
        "use_cache": True,
        "dtype": "float32",
    }


# Llama and its relatives


def _common(entries: Entries, *, act: str = "hidden_act", default_act: str = "silu", epsilon: float = 1e-6) -> dict[str, Any]:
    width, heads = entries.whole("hidden_size"), entries.whole("num_attention_heads")
    return {
        "layers": entries.whole("num_hidden_layers"), "width": width, "heads": heads,
        "kv_heads": entries.whole("num_key_value_heads", heads), "hidden": entries.whole("intermediate_size"),
        "context": entries.whole("max_position_embeddings"), "tied": entries.truth("tie_word_embeddings"),
        "activation": entries.choice(act, _ACTIVATIONS, default_act), "qk_norm": False,
        "norm": {"name": "rms_norm", "epsilon": entries.number("rms_norm_eps", epsilon)},
    }  # fmt: skip


def _rope(entries: Entries, theta: float = 10000.0) -> dict[str, Any]:
    """Base and scaling, from ``rope_parameters`` or from the older ``rope_theta`` and ``rope_scaling``."""
    outer = entries.number("rope_theta", theta)
    scaling, parameters = entries.get("rope_scaling"), entries.get("rope_parameters")
    entries.must("partial_rotary_factor", 1.0)
    return _rope_of(entries, parameters if parameters is not None else scaling, outer)


def _rope_of(entries: Entries, parameters: Any, theta: float) -> dict[str, Any]:
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping):
        entries.malformed.append(f"rope_parameters is {parameters!r}, not a mapping")
        return {}
    inner = Entries(parameters)
    kind = inner.get("rope_type", inner.get("type", "default"))
    inner.must("partial_rotary_factor", 1.0)
    found: dict[str, Any] = {"rope_theta": inner.number("rope_theta", theta)}
    if kind == "linear":
        found["rope_scaling"] = {"type": "linear", "factor": inner.number("factor")}
    elif kind == "llama3":
        context = inner.whole("original_max_position_embeddings", entries.config.get("max_position_embeddings"))
        found["rope_scaling"] = {
            "type": "llama3", "factor": inner.number("factor"), "low": inner.number("low_freq_factor"),
            "high": inner.number("high_freq_factor"), "context": context,
        }  # fmt: skip
    elif kind != "default":
        inner.wrong.append(f"rope_type is {kind!r}, not 'default' or 'linear' or 'llama3'")
    inner.wrong += [f"'{key}' of the rotary positions is not known" for key in inner.ignored()]
    entries.wrong += inner.wrong
    entries.malformed += inner.malformed
    return found


def _written(family: GPT, act: str = "hidden_act") -> dict[str, Any]:
    return {
        "hidden_size": family.width, "intermediate_size": family.hidden, "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads, "num_key_value_heads": family.kv_heads, "head_dim": family.head,
        act: _ACTIVATIONS[family.activation], "max_position_embeddings": family.context,
        "rms_norm_eps": family.norm.epsilon, "attention_dropout": 0.0,  # type: ignore[attr-defined]
    }  # fmt: skip


def _rope_written(family: GPT) -> dict[str, Any]:
    parameters = _rope_parameters(family.rope_theta, family)
    return {"rope_theta": family.rope_theta, "rope_parameters": parameters} | (
        {} if family.rope_scaling is None else {"rope_scaling": {key: v for key, v in parameters.items() if key != "rope_theta"}}
    )


def _rope_parameters(theta: float, family: GPT | None) -> dict[str, Any]:
    scaling = None if family is None else family.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    if scaling.type == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": scaling.factor}
    return {
        "rope_type": "llama3", "rope_theta": theta, "factor": scaling.factor, "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high, "original_max_position_embeddings": scaling.context,
    }  # fmt: skip


def _sight(entries: Entries, local: Callable[[int], bool]) -> dict[str, Any]:
    """Window and the layers that see everything, from ``layer_types`` or from the rule of the architecture, `local`."""
    layers, window = entries.whole("num_hidden_layers"), entries.get("sliding_window")
    types = entries.get("layer_types")
    if types is None:
        locals_ = [window is not None and local(layer) for layer in range(min(layers, 1 << 12))]
    elif not isinstance(types, list) or len(types) != layers or not set(types) <= {"full_attention", "sliding_attention"}:
        entries.wrong.append(f"layer_types is not a list of {layers} full_attention or sliding_attention")
        return {}
    else:
        locals_ = [kind == "sliding_attention" and window is not None for kind in types]
    if not any(locals_):
        return {"window": None}
    return {"window": entries.whole("sliding_window"), "global_layers": [i for i, is_local in enumerate(locals_) if not is_local]}


def _types_written(family: GPT) -> list[str]:
    return ["sliding_attention" if family.local(layer) else "full_attention" for layer in range(family.layers or 0)]


def _square_heads(family: GPT) -> list[str]:
    """transformers asks it of them even where a head has a size of its own."""
    assert family.width and family.heads
    return [] if family.width % family.heads == 0 else [f"heads {family.heads} that do not divide the width {family.width}"]


def _usual_head(family: GPT) -> list[str]:
    assert family.width and family.heads
    return [] if family.head == family.width / family.heads else [f"head {family.head} beside width / heads"]


def _usual_scale(family: GPT) -> list[str]:
    assert family.head
    usual = family.attention_scale is None or math.isclose(family.attention_scale, family.head**-0.5, rel_tol=1e-9)
    return [] if usual else [f"attention_scale {family.attention_scale}"]


def _rms(offset: float) -> Callable[[GPT], list[str]]:
    def fits(family: GPT) -> list[str]:
        from chattune.models.norms.rms_norm import RMSNorm

        right = isinstance(family.norm, RMSNorm) and family.norm.offset == offset
        return [] if right else [f"norm {family.norm.dump()}"]

    return fits


def _every(*checks: Callable[[GPT], list[str]]) -> Callable[[GPT], list[str]]:
    return lambda family: [trouble for check in checks for trouble in check(family)]


_PLAIN: dict[str, tuple[Any, ...]] = {
    "positions": ("rotary",), "activation": tuple(_ACTIVATIONS), "norm_placement": ("pre",), "residual": (True,),
    "local_rope_theta": (None,), "embedding_scale": (1.0,), "attention_softcap": (None,), "logit_softcap": (None,),
}  # fmt: skip
_ALL_SEEN: dict[str, tuple[Any, ...]] = {"window": (None,), "global_layers": ((),)}


def _read_llama(entries: Entries) -> dict[str, Any]:
    attention, inner = entries.truth("attention_bias"), entries.truth("mlp_bias")
    if inner and not attention:
        entries.wrong.append("mlp_bias is true without attention_bias")
    biases = "all" if inner else "attention" if attention else "none"
    return {**_common(entries), **_rope(entries), "head": entries.get("head_dim"), "biases": biases}


def _write_llama(family: GPT) -> dict[str, Any]:
    return {
        **_written(family), **_rope_written(family), "attention_bias": family.biases in ("attention", "all"),
        "mlp_bias": family.biases == "all",
    }  # fmt: skip


def _read_mistral(entries: Entries) -> dict[str, Any]:
    return {**_common(entries), **_rope(entries), **_sight(entries, lambda layer: True), "head": entries.get("head_dim")}


def _write_mistral(family: GPT) -> dict[str, Any]:
    return {**_written(family), **_rope_written(family), "sliding_window": family.window}


def _qwen_sight(entries: Entries) -> dict[str, Any]:
    if not entries.truth("use_sliding_window"):
        types = entries.get("layer_types")
        if isinstance(types, list) and "sliding_attention" in types:
            entries.wrong.append("layer_types has sliding_attention, but use_sliding_window is false")
        return {"window": None}
    first = entries.get("max_window_layers", 28)
    return _sight(entries, lambda layer: isinstance(first, int) and layer >= first)


def _qwen_sight_written(family: GPT) -> dict[str, Any]:
    if family.window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": family.window, "layer_types": _types_written(family)}


def _read_qwen2(entries: Entries) -> dict[str, Any]:
    return {**_common(entries), **_rope(entries), **_qwen_sight(entries), "biases": "qkv"}


def _write_qwen2(family: GPT) -> dict[str, Any]:
    return {**_written(family), **_rope_written(family), **_qwen_sight_written(family)}


def _read_qwen3(entries: Entries) -> dict[str, Any]:
    biases = "attention" if entries.truth("attention_bias") else "none"
    head = entries.whole("head_dim", 128)
    return {**_common(entries), **_rope(entries), **_qwen_sight(entries), "biases": biases, "head": head, "qk_norm": True}


def _write_qwen3(family: GPT) -> dict[str, Any]:
    return {
        **_written(family), **_rope_written(family), **_qwen_sight_written(family), "attention_bias": family.biases == "attention",
    }  # fmt: skip


# Gemma: weights of norms around 0, norms on both sides of a branch, scaled embeddings, layers with a window between the others


def _gemma(entries: Entries, head: int, pattern: int) -> dict[str, Any]:
    found = _common(entries, act="hidden_activation", default_act="gelu_pytorch_tanh")
    entries.must("use_bidirectional_attention", False)
    if (act := entries.get("hidden_act")) is not None and "hidden_activation" not in entries.config:
        entries.wrong.append(f"hidden_act is {act!r}, which transformers does not follow for Gemma; hidden_activation is missing")
    found["norm"]["offset"] = 1.0
    scalar = entries.number("query_pre_attn_scalar", 256)
    tied = entries.config.get("tie_word_embeddings")
    return {
        **found, "tied": tied if isinstance(tied, bool) else True, "norm_placement": "both",
        "embedding_scale": math.sqrt(found["width"]), "head": entries.whole("head_dim", head), "attention_scale": scalar**-0.5,
        "logit_softcap": entries.number("final_logit_softcapping"),
        "biases": "attention" if entries.truth("attention_bias") else "none",
        **_sight(entries, lambda layer: bool((layer + 1) % pattern)),
    }  # fmt: skip


def _gemma_written(family: GPT) -> dict[str, Any]:
    assert family.head
    scale = family.attention_scale or family.head**-0.5
    scalar = scale**-2
    return {
        **_written(family, "hidden_activation"), "attention_bias": family.biases == "attention",
        # transformers wants a whole number here wherever it is one
        "query_pre_attn_scalar": round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-9) else scalar,
        "final_logit_softcapping": family.logit_softcap, "sliding_window": family.window or family.context,
        "layer_types": _types_written(family),
    }  # fmt: skip


def _read_gemma2(entries: Entries) -> dict[str, Any]:
    return {**_gemma(entries, 256, 2), **_rope(entries), "attention_softcap": entries.number("attn_logit_softcapping", None)}


def _write_gemma2(family: GPT) -> dict[str, Any]:
    return {**_gemma_written(family), **_rope_written(family), "attn_logit_softcapping": family.attention_softcap}


def _read_gemma3(entries: Entries) -> dict[str, Any]:
    pattern = entries.whole("sliding_window_pattern", entries.config.get("_sliding_window_pattern", 6))
    found = {**_gemma(entries, 256, pattern), "qk_norm": True}
    entries.must("attn_logit_softcapping", None)  # transformers reads it and does not apply it
    parameters = entries.get("rope_parameters")
    if isinstance(parameters, Mapping) and parameters.keys() & {"full_attention", "sliding_attention"}:
        outer, local = parameters.get("full_attention"), parameters.get("sliding_attention")
    else:
        outer, local = entries.get("rope_scaling") if parameters is None else parameters, None
    found |= _rope_of(entries, outer, entries.number("rope_theta", 1e6))
    inner = _rope_of(entries, local, entries.number("rope_local_base_freq", 1e4))
    if "rope_scaling" in inner:
        entries.wrong.append("rope_parameters stretches the positions of layers with a window")
    return {**found, "local_rope_theta": inner.get("rope_theta")}


def _write_gemma3(family: GPT) -> dict[str, Any]:
    local = family.local_rope_theta or family.rope_theta
    return {
        **_gemma_written(family),
        "rope_parameters": {
            "full_attention": _rope_parameters(family.rope_theta, family), "sliding_attention": _rope_parameters(local, None),
        },
        "rope_theta": family.rope_theta, "rope_local_base_freq": local,
    }  # fmt: skip


def _gemma_scale(family: GPT) -> list[str]:
    assert family.width
    right = math.isclose(family.embedding_scale, math.sqrt(family.width), rel_tol=1e-6)
    return [] if right else [f"embedding_scale {family.embedding_scale}, which is not √width"]


def _local_unstretched(family: GPT) -> list[str]:
    """Gemma 3 stretches the positions of layers without a window only."""
    shared = family.rope_scaling is not None and family.local_rope_theta is None and family.window is not None
    return ["rope_scaling of layers with a window"] if shared else []


_GEMMA: dict[str, tuple[Any, ...]] = {
    "positions": ("rotary",), "activation": tuple(_ACTIVATIONS), "norm_placement": ("both",), "residual": (True,),
    "biases": ("none", "attention"),
}  # fmt: skip


# GPT-2


def _read_gpt2(entries: Entries) -> dict[str, Any]:
    width, heads = entries.whole("n_embd", 768), entries.whole("n_head", 12)
    entries.must("scale_attn_weights", True)
    entries.must("scale_attn_by_inverse_layer_idx", False)
    entries.must("add_cross_attention", False)
    tied = entries.config.get("tie_word_embeddings")
    entries.asked.add("tie_word_embeddings")
    return {
        "layers": entries.whole("n_layer", 12), "width": width, "heads": heads, "kv_heads": heads,
        "hidden": entries.whole("n_inner", 4 * width), "context": entries.whole("n_positions", 1024), "positions": "learned",
        "activation": _gpt2_activation(entries), "biases": "all", "qk_norm": False, "tied": tied if isinstance(tied, bool) else True,
        "norm": {"name": "layer_norm", "epsilon": entries.number("layer_norm_epsilon", 1e-5)},
    }  # fmt: skip


def _gpt2_activation(entries: Entries) -> str:
    if entries.config.get("activation_function") == "gelu_pytorch_tanh":  # another name of gelu_new
        entries.asked.add("activation_function")
        return "gelu_tanh"
    return entries.choice("activation_function", _GPT2_ACTIVATIONS, "gelu_new")


def _write_gpt2(family: GPT) -> dict[str, Any]:
    return {
        "n_embd": family.width, "n_layer": family.layers, "n_head": family.heads, "n_inner": family.hidden,
        "n_positions": family.context, "activation_function": _GPT2_ACTIVATIONS[family.activation],
        "layer_norm_epsilon": family.norm.epsilon, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,  # type: ignore[attr-defined]
    }  # fmt: skip


def _centred(family: GPT) -> list[str]:
    from chattune.models.norms.layer_norm import LayerNorm

    right = isinstance(family.norm, LayerNorm) and family.norm.bias
    return [] if right else [f"norm {family.norm.dump()}"]


def _own_keys(family: GPT) -> list[str]:
    return [] if family.kv_heads == family.heads else [f"kv_heads {family.kv_heads} beside heads {family.heads}"]


ARCHITECTURES: dict[str, Architecture] = {
    each.name: each
    for each in (
        Architecture(
            "llama", "LlamaForCausalLM", {**_PLAIN, **_ALL_SEEN, "qk_norm": (False,), "biases": ("none", "attention", "all")},
            _read_llama, _write_llama, _every(_rms(0.0), _usual_scale, _square_heads),
        ),
        Architecture(
            "mistral", "MistralForCausalLM", {**_PLAIN, "global_layers": ((),), "qk_norm": (False,), "biases": ("none",)},
            _read_mistral, _write_mistral, _every(_rms(0.0), _usual_scale),
        ),
        Architecture(
            "qwen2", "Qwen2ForCausalLM", {**_PLAIN, "qk_norm": (False,), "biases": ("qkv",)},
            _read_qwen2, _write_qwen2, _every(_rms(0.0), _usual_scale, _usual_head),
        ),
        Architecture(
            "qwen3", "Qwen3ForCausalLM", {**_PLAIN, "qk_norm": (True,), "biases": ("none", "attention")},
            _read_qwen3, _write_qwen3, _every(_rms(0.0), _usual_scale),
        ),
        Architecture(
            "gemma2", "Gemma2ForCausalLM", {**_GEMMA, "qk_norm": (False,), "local_rope_theta": (None,)},
            _read_gemma2, _write_gemma2, _every(_rms(1.0), _gemma_scale, _square_heads),
        ),
        Architecture(
            "gemma3_text", "Gemma3ForCausalLM", {**_GEMMA, "qk_norm": (True,), "attention_softcap": (None,)},
            _read_gemma3, _write_gemma3, _every(_rms(1.0), _gemma_scale, _square_heads, _local_unstretched),
        ),
        Architecture(
            "gpt2", "GPT2LMHeadModel",
            {
                **_PLAIN, **_ALL_SEEN, "positions": ("learned",), "activation": tuple(_GPT2_ACTIVATIONS), "qk_norm": (False,),
                "biases": ("all",),
            },
            _read_gpt2, _write_gpt2, _every(_centred, _usual_scale, _usual_head, _own_keys),
        ),
    )
}  # fmt: skip
