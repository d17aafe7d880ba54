"""GGUF files as models of the GPT family, and back: llama.cpp's names, its order of rotary pairs, its blocks of quantised numbers.

The container is read by `chattune.core.gguf`, which trusts nothing; blocks are turned into numbers by the `gguf` library, some rows
at a time, straight into the model's weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from chattune.core.errors import ArtifactError, CorruptError, DivergenceError
from chattune.core.gguf import BLOCKS, Entry, GgufFile, GgufTensor, read_gguf, write_gguf_file
from chattune.models.architectures import ARCHITECTURES, Entries, architecture_of, family_of
from chattune.models.layers import RMSNorm, llama3_speeds, rotary_speeds
from chattune.models.stored import Description, differences, refuse
from chattune.tokens.gguf_metadata import gguf_metadata

if TYPE_CHECKING:
    from chattune.models.families._gpt import GPTModel
    from chattune.models.families.gpt import GPT
    from chattune.models.language_model import LanguageModel
    from chattune.models.rope_scaling import RopeScaling

_CHUNK = 1 << 20  # numbers that are turned at a time: some 4 MiB, and a few times that while the library works on them
FACTORS = "rope_freqs.weight"  # by which llama.cpp divides the speeds of rotary positions, for llama3 scaling


@dataclass(frozen=True)
class Piece:
    """A tensor of the file that holds rows `start` to `stop` of a parameter of ours; `heads`: with rotary pairs as neighbours."""

    name: str
    start: int
    stop: int
    heads: int = 0


def read_gguf_model(path: Path) -> tuple[LanguageModel, Description]:
    """The model in a GGUF file, in float32 on the CPU, and what was found.

    `ArtifactError` for an architecture or a type that is not covered, by name; `CorruptError` with all that is missing, too much,
    of another shape or not finite.
    """
    file = read_gguf(Path(path))
    family, vocabulary, ignored, notes = described(file)
    model: GPTModel = family.empty(vocabulary)  # type: ignore[assignment]
    expected = {piece.name: _shape(model, name, piece) for name in model.state_dict() for piece in pieces(model, name)}
    spare = {FACTORS} | ({"output.weight"} if family.tied else set())
    refuse(file.path, differences(expected, {name: t.shape for name, t in file.tensors.items()}, spare), "the tensors of its metadata")
    _require_library(file)
    bad = [
        piece.name
        for name, weight in model.state_dict().items()
        for piece in pieces(model, name)
        if not _fill(weight, piece, file, offset_of(model, name))
    ]
    refuse(file.path, [f"{name} holds numbers that are not finite" for name in bad], "finite weights")
    kinds = [tensor.type for tensor in file.tensors.values()]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    architecture = str(file.metadata["general.architecture"])
    return model.eval(), Description("GGUF file", architecture, counts, tuple(ignored), tuple(notes))


Type = Literal["F32", "F16", "BF16", "Q8_0"]
_FILE_TYPES: dict[Type, int] = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}


def write_gguf(model: LanguageModel, tokenizer_from: Path, path: Path, kind: Type = "F16", name: str = "chattune") -> list[str]:
    """Write `model` with the tokenizer and template of a folder as a GGUF file that llama.cpp runs; gives what its reader has to know.

    `kind`: the numbers of the matrices; vectors and learned positions are F32. `ArtifactError` for a model that llama.cpp has no
    architecture for, by what it would have to be; `DivergenceError` where a number does not fit into `kind`. Takes memory for some
    rows of one tensor.
    """
    gpt, architecture = _writable(model)
    family, notes = gpt.family, list[str]()
    tokens, more = gguf_metadata(Path(tokenizer_from), model.vocabulary)
    notes += more
    metadata = {
        "general.architecture": architecture, "general.type": "model", "general.name": name, "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
    } | {f"{architecture}.{key}": value for key, value in _WRITERS[architecture](family).items()}  # fmt: skip
    metadata[f"{architecture}.vocab_size"] = model.vocabulary
    if family.window is not None and architecture in ("llama", "qwen2", "qwen3"):
        assert family.context
        metadata[f"{architecture}.context_length"] = min(family.context, family.window)
        metadata |= {"llama.attention.sliding_window": family.window} if architecture == "llama" else {}
        notes.append(f"llama.cpp knows no window for {architecture}: beyond {family.window} tokens it would compute something else")
    tensors = [_entry(gpt, own, piece, kind) for own in gpt.state_dict() for piece in pieces(gpt, own)]
    if family.rope_scaling is not None and family.rope_scaling.type == "llama3":
        assert family.head
        factors = rope_factors(family.head, family.rope_theta, family.rope_scaling)
        tensors.append(Entry(FACTORS, tuple(factors.shape), "F32", lambda: iter([factors.numpy().astype("<f4").tobytes()])))
    if rough := [entry.name for entry in tensors if kind == "Q8_0" and entry.type == "F16"]:
        notes.append(f"{len(rough)} matrices have rows that Q8_0 cannot hold and are F16, such as {rough[0]}")
    write_gguf_file(Path(path), metadata | tokens, tensors)
    return notes


def _writable(model: LanguageModel) -> tuple[GPTModel, str]:
    """The model as one of llama.cpp's architectures, or an error that says what stands in the way."""
    from chattune.models.families._gpt import GPTModel

    if not isinstance(model, GPTModel):
        raise ArtifactError(
            f"is of the family {model.family.name}.", path="model", value=model.family.name, rule="a model of the family gpt",
            hint="llama.cpp runs no such model; export as a Hugging Face directory: --to hf.",
        )
    found = architecture_of(model.family)
    if found is None:
        nearest, misfits = min(
            ((each.name, each.misfits(model.family)) for each in ARCHITECTURES.values()), key=lambda entry: len(entry[1])
        )
        wrong = [f"it is no {nearest} because of {'; '.join(misfits)}"]
        architecture = ""
    else:
        architecture = {"mistral": "llama", "gemma3_text": "gemma3"}.get(found.name, found.name)
        wrong = _unwritable(architecture, model.family)
    if wrong:
        raise ArtifactError(
            f"computes what no architecture of llama.cpp does: {'; '.join(wrong)}.", path="model", value=wrong[0],
            rule=f"one of {', '.join(_WRITERS)}", hint="Export as a Hugging Face directory: --to hf.",
        )
    return model, architecture


def _unwritable(architecture: str, family: GPT) -> list[str]:
    """What llama.cpp fixes for an architecture and transformers leaves open."""
    assert family.head and family.width and family.heads and family.layers
    usual = {"gpt2": "gelu_tanh", "gemma2": "geglu_tanh", "gemma3": "geglu_tanh"}.get(architecture, "swiglu")
    wrong = [] if family.activation == usual else [f"activation {family.activation}, not {usual}"]
    if architecture in ("qwen3", "gemma2", "gemma3") and family.biases != "none":
        wrong.append(f"biases {family.biases}")
    if family.rope_scaling is not None and family.rope_scaling.type == "llama3" and architecture != "llama":
        wrong.append("rope_scaling llama3")
    if architecture in ("gemma2", "gemma3"):
        pattern = 2 if architecture == "gemma2" else 6
        if any(family.local(layer) != bool((layer + 1) % pattern) for layer in range(family.layers)):
            wrong.append(f"a window in other layers than all but every {pattern}th")
        largest = family.layers == (46 if architecture == "gemma2" else 62)
        scalar = gemma_scalar(largest, {"hidden_size": family.width, "num_attention_heads": family.heads, "head_dim": family.head})
        if not math.isclose(family.attention_scale or family.head**-0.5, scalar**-0.5, rel_tol=1e-6):
            wrong.append(f"attention_scale {family.attention_scale}, not 1/√{scalar:.0f}")
    if architecture == "gemma2" and None in (family.attention_softcap, family.logit_softcap):
        wrong.append("no soft caps")
    if architecture == "gemma3" and family.logit_softcap is not None:
        wrong.append(f"logit_softcap {family.logit_softcap}")
    return wrong


def _entry(model: GPTModel, name: str, piece: Piece, kind: Type) -> Entry:
    weight, shape = model.get_parameter(name), _shape(model, name, piece)
    small = len(shape) == 1 or name == "position_embedding.weight"
    chosen: Type = "F32" if small else "F16" if kind == "Q8_0" and shape[-1] % 32 else kind
    stored, offset = as_stored(weight.detach(), piece), offset_of(model, name)
    return Entry(piece.name, shape, chosen, partial(_written, stored, offset, chosen, piece.name))


def _written(stored: Tensor, offset: float, kind: Type, name: str) -> Iterator[bytes]:
    """The bytes of a tensor, some rows at a time."""
    step = len(stored) if stored.ndim == 1 else max(1, _CHUNK // stored.shape[1:].numel())
    for first in range(0, len(stored), step):
        part = stored[first : first + step]
        numbers = part.to("cpu", torch.float32).reshape(-1, part.shape[-1]) + offset
        if not float(numbers.abs().max()) <= _LARGEST[kind]:
            raise DivergenceError(
                f"holds numbers that {kind} cannot.", path=name, rule=f"finite numbers within ±{_LARGEST[kind]:g}",
                hint="Choose BF16 or F32." if bool(numbers.isfinite().all()) else None,
            )
        yield _ENCODERS[kind](numbers)


def _q8_0(x: Tensor) -> bytes:
    """Blocks of 32: the largest magnitude / 127 as float16, and each number as its nearest multiple (halves away from 0) in 8 bits."""
    blocks = x.view(-1, 32)
    step = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * torch.where(step > 0, 1 / step, 0.0)
    whole = scaled.trunc() + (2 * (scaled - scaled.trunc())).trunc()
    joined = np.empty((len(blocks), 34), dtype=np.uint8)
    joined[:, :2] = step.half().numpy().view(np.uint8)
    joined[:, 2:] = whole.to(torch.int8).numpy().view(np.uint8)
    return joined.tobytes()


_ENCODERS: dict[Type, Callable[[Tensor], bytes]] = {
    "F32": lambda x: x.numpy().astype("<f4").tobytes(),
    "F16": lambda x: x.numpy().astype("<f2").tobytes(),
    "BF16": lambda x: x.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes(),
    "Q8_0": _q8_0,
}


# Q8_0: a block's step, the largest number / 127, is a float16.
_LARGEST: dict[Type, float] = {"F32": 3.4028235e38, "F16": 65504.0, "BF16": 3.3895314e38, "Q8_0": 127 * 65504.0}


def _write_common(family: GPT) -> dict[str, Any]:
    assert family.head
    return {
        "block_count": family.layers, "context_length": family.context, "embedding_length": family.width,
        "feed_forward_length": family.hidden, "attention.head_count": family.heads, "attention.head_count_kv": family.kv_heads,
    }  # fmt: skip


def _write_llama(family: GPT) -> dict[str, Any]:
    scaling = family.rope_scaling
    linear: dict[str, Any] = {}
    if scaling is not None and scaling.type == "linear":
        linear = {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    return {
        **_write_common(family), "attention.layer_norm_rms_epsilon": family.norm.epsilon,  # type: ignore[attr-defined]
        "attention.key_length": family.head, "attention.value_length": family.head, "rope.dimension_count": family.head,
        "rope.freq_base": family.rope_theta, **linear,
    }  # fmt: skip


def _write_gemma2(family: GPT) -> dict[str, Any]:
    return {
        **_write_llama(family), "attention.sliding_window": family.window, "attn_logit_softcapping": family.attention_softcap,
        "final_logit_softcapping": family.logit_softcap,
    }  # fmt: skip


def _write_gemma3(family: GPT) -> dict[str, Any]:
    return {
        **_write_llama(family), "attention.sliding_window": family.window,
        "rope.freq_base_swa": family.local_rope_theta or family.rope_theta,
    }  # fmt: skip


def _write_gpt2(family: GPT) -> dict[str, Any]:
    return {**_write_common(family), "attention.layer_norm_epsilon": family.norm.epsilon}  # type: ignore[attr-defined]


_WRITERS: dict[str, Callable[[GPT], dict[str, Any]]] = {
    "llama": _write_llama, "qwen2": _write_llama, "qwen3": _write_llama, "gemma2": _write_gemma2, "gemma3": _write_gemma3,
    "gpt2": _write_gpt2,
}  # fmt: skip


def pieces(model: GPTModel, name: str) -> list[Piece]:
    """llama.cpp's tensors that make up our parameter `name`."""
    family, rows = model.family, model.get_parameter(name).shape[0]
    architecture = architecture_of(family)
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return [Piece(f"{_TOP[module]}.{kind}", 0, rows)]
    _, layer, rest = module.split(".", 2)
    if rest == "attention.qkv" and architecture is not None and architecture.name == "gpt2":
        return [Piece(f"blk.{layer}.attn_qkv.{kind}", 0, rows)]
    paired = rest == "attention.qkv" and architecture is not None and architecture.name in ("llama", "mistral")
    heads = (family.heads or 0, family.kv_heads or 0, 0) if paired else (0, 0, 0)
    found, start = [], 0
    for part, length, count in zip(_BLOCK[rest], model.splits(name) or (rows,), heads, strict=False):
        found.append(Piece(f"blk.{layer}.{part}.{kind}", start, start + length, count))
        start += length
    return found


_TOP = {"embedding": "token_embd", "position_embedding": "position_embd", "norm": "output_norm", "output": "output"}
_BLOCK = {
    "attention_norm": ("attn_norm",), "attention.qkv": ("attn_q", "attn_k", "attn_v"), "attention.output": ("attn_output",),
    "attention.query_norm": ("attn_q_norm",), "attention.key_norm": ("attn_k_norm",),
    "attention_output_norm": ("post_attention_norm",), "feed_forward_norm": ("ffn_norm",),
    "feed_forward.gate_up": ("ffn_gate", "ffn_up"), "feed_forward.up": ("ffn_up",), "feed_forward.output": ("ffn_down",),
    "feed_forward_output_norm": ("post_ffw_norm",),
}  # fmt: skip


def as_stored(weight: Tensor, piece: Piece) -> Tensor:
    """The rows of our parameter in the file's order, as a view: (heads, head/2, 2, …) where rotary pairs are neighbours."""
    part = weight[piece.start : piece.stop]
    return part.view(piece.heads, 2, -1, *part.shape[1:]).transpose(1, 2) if piece.heads else part


def offset_of(model: GPTModel, name: str) -> float:
    """What the file's number is more than ours: Gemma's norms keep their weights around 0, llama.cpp's around 1."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return owner.offset if isinstance(owner, RMSNorm) else 0.0


def _shape(model: GPTModel, name: str, piece: Piece) -> tuple[int, ...]:
    return (piece.stop - piece.start, *model.get_parameter(name).shape[1:])


@torch.no_grad()
def _fill(weight: Tensor, piece: Piece, file: GgufFile, offset: float) -> bool:
    """Put a tensor of the file where it belongs; false where it holds a number that is not finite."""
    target, tensor = as_stored(weight, piece), file.tensors[piece.name]
    flat = len(tensor.shape) == 1
    height = 1 if flat else tensor.shape[0] // len(target)  # rows of the file in one entry of the target: a head's, or one
    place, finite = 0, True
    for numbers in _numbers(tensor, file.path, height):
        found = torch.from_numpy(numbers)
        finite = finite and bool(torch.stack(torch.aminmax(found)).isfinite().all())
        count = len(target) if flat else len(found) // height
        part = target[place : place + count]
        part.copy_(found.view(part.shape) - offset if offset else found.view(part.shape))
        place += count
    return finite


def _numbers(tensor: GgufTensor, path: Path, height: int) -> Iterator[np.ndarray]:
    """The rows of a tensor as float32, a multiple of `height` at a time; a vector as one row."""
    _, block, width = BLOCKS[tensor.type]
    columns = tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])  # 1 of a vector
    step = max(1, _CHUNK // (columns * height)) * height
    with open(path, "rb") as file:
        file.seek(tensor.start)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            data = np.frombuffer(file.read(count * columns // block * width), dtype=np.uint8).reshape(count, -1)
            yield _floats(data, tensor.type)


def _floats(data: np.ndarray, kind: str) -> np.ndarray:
    """(rows, bytes) uint8 → (rows, numbers) float32."""
    if kind == "F32":
        return data.view("<f4").astype(np.float32)
    if kind == "F16":
        return data.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    from gguf import GGMLQuantizationType, dequantize

    result: np.ndarray = dequantize(data, GGMLQuantizationType[kind])
    return result


def _require_library(file: GgufFile) -> None:
    kinds = {tensor.type for tensor in file.tensors.values()} - {"F32", "F16", "BF16"}
    if kinds:
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise ArtifactError(
                f"holds quantised numbers ({', '.join(sorted(kinds))}).", path=str(file.path), rule="the gguf library",
                hint="Run `pip install gguf`.",
            ) from None


# Metadata


def described(file: GgufFile) -> tuple[GPT, int, list[str], list[str]]:
    """Family, vocabulary, entries that are not followed, notes."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _CONFIGS:
        raise ArtifactError(
            f"holds a model of the architecture {name!r}.", path=str(file.path), value=name, rule=f"one of {', '.join(_CONFIGS)}",
            hint="Import the model's Hugging Face directory instead: the family `hf` takes others through transformers.",
        )
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise ArtifactError(
            "is one of several parts of a model.", path=str(file.path), rule="one GGUF file",
            hint="Join the parts with llama.cpp's `llama-gguf-split --merge`.",
        )
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise CorruptError("lacks token_embd.weight.", path=str(file.path), rule="a table of embeddings")
    own = {key: value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    entries = Entries({key.removeprefix(f"{name}."): _plain(value) for key, value in own.items()})
    vocabulary = table.shape[0]
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > vocabulary:
        entries.wrong.append(f"has {len(tokens)} tokens, more than the {vocabulary} embeddings")
    for key, none in _ABSENT.items():
        if (value := entries.get(key, none)) not in (none, 0, 0.0):
            entries.wrong.append(f"{key} is {value!r}")
    config = {**_CONFIGS[name](entries, file), "tie_word_embeddings": _tied(file), "vocab_size": vocabulary}
    if trouble := "; ".join(entries.wrong + entries.malformed):
        raise ArtifactError(
            f"{trouble}.", path=str(file.path), value=name, rule=f"what chattune's gpt covers of {name}",
            hint="Import the model's Hugging Face directory instead.",
        )  # fmt: skip
    family, _ = family_of(config, str(file.path))
    general = [key for key in file.metadata if key.partition(".")[0] not in (name, "general", "tokenizer", "GGUF", "quantize", "split")]
    ignored = sorted([*general, *(f"{name}.{key}" for key in entries.config.keys() - entries.asked)])
    return family, vocabulary, ignored, _notes(file)


# Entries that change the network in ways that are not covered, and the value at which they do not.
_ABSENT = {
    "expert_count": 0, "expert_used_count": 0, "attention.max_alibi_bias": 0.0, "attention.clamp_kqv": 0.0, "attention.causal": True,
    "use_parallel_residual": True, "logit_scale": 0.0, "residual_scale": 0.0, "embedding_scale": 0.0, "attention.scale": 0.0,
    "rope.scaling.attn_factor": 1.0, "leading_dense_block_count": 0,
}  # fmt: skip


def _tied(file: GgufFile) -> bool:
    """No head of its own, or one that is a copy of the embeddings, as some writers make it."""
    head, table = file.tensors.get("output.weight"), file.tensors["token_embd.weight"]
    if head is None or (head.type, head.shape) != (table.type, table.shape):
        return head is None
    with open(file.path, "rb") as one, open(file.path, "rb") as other:
        one.seek(head.start)
        other.seek(table.start)
        return all(one.read(step) == other.read(step) for step in _steps(head.size))


def _steps(size: int) -> Iterator[int]:
    for place in range(0, size, _CHUNK):
        yield min(_CHUNK, size - place)


def _notes(file: GgufFile) -> list[str]:
    kinds = sorted({tensor.type for tensor in file.tensors.values()} - {"F32", "F16", "BF16"})
    return [f"weights were quantised to {', '.join(kinds)}; what that lost is not regained"] if kinds else []


def _plain(value: Any) -> Any:
    """Numbers of 32 bits as they were meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _common(entries: Entries, kind: str) -> dict[str, Any]:
    heads = entries.whole("attention.head_count")
    width = entries.whole("embedding_length")
    head = entries.whole("attention.key_length", max(1, width // heads))
    if (value := entries.get("attention.value_length", head)) != head:
        entries.wrong.append(f"attention.value_length is {value!r}, not {head}")
    if (value := entries.get("rope.dimension_count", head)) != head and kind != "gpt2":
        entries.wrong.append(f"rope.dimension_count is {value!r}, not the whole head of {head}")
    entries.get("vocab_size")
    return {
        "model_type": kind, "num_hidden_layers": entries.whole("block_count"), "hidden_size": width, "num_attention_heads": heads,
        "num_key_value_heads": entries.whole("attention.head_count_kv", heads), "head_dim": head,
        "intermediate_size": entries.whole("feed_forward_length"), "max_position_embeddings": entries.whole("context_length"),
        "rms_norm_eps": entries.number("attention.layer_norm_rms_epsilon", 1e-6),
    }  # fmt: skip


def _rope(entries: Entries, theta: float = 10000.0) -> dict[str, Any]:
    base = entries.number("rope.freq_base", theta)
    kind = entries.get("rope.scaling.type", "none")
    factor = entries.number("rope.scaling.factor", entries.number("rope.scale_linear", 1.0))
    entries.get("rope.scaling.original_context_length")
    entries.get("rope.scaling.finetuned")
    if kind not in ("none", "linear"):
        entries.wrong.append(f"rope.scaling.type is {kind!r}, not 'none' or 'linear'")
    if kind == "linear" and factor != 1.0:
        return {"rope_parameters": {"rope_type": "linear", "rope_theta": base, "factor": factor}}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}


def _llama(entries: Entries, file: GgufFile) -> dict[str, Any]:
    window = entries.get("attention.sliding_window")
    config = {**_common(entries, "llama" if window is None else "mistral"), **_rope(entries)}
    biased = {name: f"blk.0.{name}.bias" in file.tensors for name in ("attn_q", "attn_output", "ffn_gate")}
    if FACTORS in file.tensors and not entries.malformed:
        config["rope_parameters"] = _from_factors(config, file)
    return config | {
        "hidden_act": "silu", "attention_bias": biased["attn_q"] or biased["attn_output"], "mlp_bias": biased["ffn_gate"],
    } | ({} if window is None else {"sliding_window": window})  # fmt: skip


def _from_factors(config: Mapping[str, Any], file: GgufFile) -> dict[str, Any]:
    """llama3 scaling from the factors by which the file divides the speeds: the settings that give just these."""
    tensor, half = file.tensors[FACTORS], config["head_dim"] // 2
    if tensor.shape != (half,) or tensor.type != "F32":
        raise CorruptError(f"has {FACTORS} of {tensor.shape} {tensor.type}.", path=str(file.path), rule=f"{half} numbers of F32")
    factors = torch.from_numpy(next(_numbers(tensor, file.path, 1)).reshape(-1))
    parameters = dict(config["rope_parameters"])
    for context in (8192, *(1 << power for power in range(4, 21))):
        guess = {
            "rope_type": "llama3", "rope_theta": parameters["rope_theta"], "factor": float(str(factors.max().numpy())),
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": context,
        }  # fmt: skip
        speeds = rotary_speeds(config["head_dim"], guess["rope_theta"], torch.device("cpu"))
        made = speeds / llama3_speeds(speeds, guess["factor"], 1.0, 4.0, context)
        if torch.allclose(made, factors, rtol=1e-4, atol=0.0):
            return guess
    raise ArtifactError(
        f"stretches rotary positions by {FACTORS} in a way that is not Llama 3's.", path=str(file.path), rule="llama3 scaling",
        hint="Import the model's Hugging Face directory instead.",
    )


def rope_factors(head: int, theta: float, scaling: RopeScaling) -> Tensor:
    """(head/2,) by what llama.cpp divides the speeds of rotary positions."""
    speeds = rotary_speeds(head, theta, torch.device("cpu"))
    return speeds / llama3_speeds(speeds, scaling.factor, scaling.low, scaling.high, scaling.context)


def _qwen2(entries: Entries, file: GgufFile) -> dict[str, Any]:
    return {**_common(entries, "qwen2"), **_rope(entries)}


def _qwen3(entries: Entries, file: GgufFile) -> dict[str, Any]:
    biased = "blk.0.attn_q.bias" in file.tensors
    return {**_common(entries, "qwen3"), **_rope(entries), "attention_bias": biased}


def _gemma2(entries: Entries, file: GgufFile) -> dict[str, Any]:
    config = _common(entries, "gemma2")
    return config | _rope(entries) | {
        "query_pre_attn_scalar": gemma_scalar(config["num_hidden_layers"] == 46, config), "sliding_window":
        entries.whole("attention.sliding_window", 4096), "attn_logit_softcapping": entries.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": entries.number("final_logit_softcapping", 30.0),
    }  # fmt: skip


def _gemma3(entries: Entries, file: GgufFile) -> dict[str, Any]:
    config = _common(entries, "gemma3_text")
    rope = _rope(entries, 1e6)["rope_parameters"]
    local = {"rope_type": "default", "rope_theta": entries.number("rope.freq_base_swa", 1e4)}
    return config | {
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
        "query_pre_attn_scalar": gemma_scalar(config["num_hidden_layers"] == 62, config),
        "sliding_window": entries.whole("attention.sliding_window", 1024),
        "final_logit_softcapping": entries.number("final_logit_softcapping", None),
    }  # fmt: skip


def gemma_scalar(largest: bool, config: Mapping[str, Any]) -> float:
    """What queries are divided by the root of: llama.cpp knows it by the number of layers (27B), no file says it."""
    return float(config["hidden_size"] // config["num_attention_heads"] if largest else config["head_dim"])


def _gpt2(entries: Entries, file: GgufFile) -> dict[str, Any]:
    config = _common(entries, "gpt2")
    return {
        "model_type": "gpt2", "n_layer": config["num_hidden_layers"], "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"], "n_inner": config["intermediate_size"],
        "n_positions": config["max_position_embeddings"],
        "layer_norm_epsilon": entries.number("attention.layer_norm_epsilon", 1e-5),
    }  # fmt: skip


_CONFIGS = {"llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "gemma2": _gemma2, "gemma3": _gemma3, "gpt2": _gpt2}
