"""Weights of other libraries: read into the GPT family and written back, with the logits that transformers computes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from chattune.core.errors import ArtifactError, CorruptError, SettingError
from chattune.models.architectures import ARCHITECTURES, architecture_of
from chattune.models.checkpoint import load_model, save_model
from chattune.models.families.gpt import GPT
from chattune.models.foreign import read_foreign
from chattune.models.stored import write
from chattune.tokens.tokenizer import Tokenizer

VOCABULARY = 300
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GEMMA = {**SHAPE, "head_dim": 16, "num_hidden_layers": 6, "sliding_window": 6, "query_pre_attn_scalar": 24}
# what: (class of its configuration in transformers, its entries)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SHAPE, "tie_word_embeddings": False}),
    "llama, tied, head of its own": ("Llama", {**SHAPE, "head_dim": 20, "tie_word_embeddings": True}),
    "llama 3": ("Llama", {**SHAPE, "rope_parameters": LLAMA3}),
    "llama, linear": ("Llama", {**SHAPE, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama, biases": ("Llama", {**SHAPE, "attention_bias": True, "mlp_bias": True}),
    "llama, attention biases, gelu": ("Llama", {**SHAPE, "attention_bias": True, "hidden_act": "gelu"}),
    "mistral": ("Mistral", {**SHAPE, "sliding_window": 7}),
    "mistral, no window": ("Mistral", {**SHAPE, "sliding_window": None, "head_dim": 8}),
    "qwen2": ("Qwen2", {**SHAPE, "tie_word_embeddings": True}),
    "qwen2, some windows": ("Qwen2", {**SHAPE, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**SHAPE, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, biases, windows": (
        "Qwen3",
        {**SHAPE, "head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", {**GEMMA, "num_key_value_heads": 1}),
    "gemma3, stretched, capped": (
        "Gemma3Text",
        {
            **GEMMA, "final_logit_softcapping": 4.0, "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "gpt2, two tables, relu": (
        "GPT2",
        {
            "vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 128, "n_inner": 50,
            "activation_function": "relu", "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
# The bar is 1e-3. The two add the same numbers in another order: 1e-5 of logits of order 1 is some hundred roundings of float32.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and its template."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = Tokenizer.train_at_most(["the quick brown fox 我们去公园吧 👍🏽 "] * 4, VOCABULARY)
    tokenizer.template().save(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tokens: Path) -> Tensor:
    """(3, 40) ids of English, Chinese and emoji, longer than every window."""
    tokenizer = Tokenizer.load(tokens)
    said = ("How are you today, my quick friend? I am fine.", "你好，今天天气怎么样？我们去公园吧，好吗", "👩‍👩‍👧‍👦 👍🏽 ok 🏴󠁧󠁢󠁥󠁮󠁧󠁿")
    return torch.tensor([(tokenizer.encode(text) * 40)[:40] for text in said])


def theirs(what: str, folder: Path | None = None) -> Any:
    """A tiny model of transformers with random weights, those of vectors included; saved in `folder`."""
    name, entries = MODELS[what]
    config = getattr(transformers, f"{name}Config")(**entries)
    config._attn_implementation = "eager"  # the plain formula, the only one that knows soft caps
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 0.1))
    if folder is not None:
        model.save_pretrained(folder)
    return model


@pytest.mark.requirement("R077")
@pytest.mark.parametrize("what", MODELS)
def test_foreign_weights_give_the_logits_of_transformers(what: str, texts: Tensor, tmp_path: Path) -> None:
    model = theirs(what, tmp_path)
    ours, description = read_foreign(tmp_path)
    assert isinstance(ours.family, GPT)
    assert description.architecture == model.config.model_type
    assert description.format == "Hugging Face directory"
    assert description.dtype == "float32"
    with torch.inference_mode():
        torch.testing.assert_close(ours(texts), model(texts).logits, atol=CLOSE, rtol=CLOSE)


@pytest.mark.requirement("R077")
@pytest.mark.parametrize("what", MODELS)
def test_written_back_they_are_the_same_to_the_bit(what: str, tokens: Path, texts: Tensor, tmp_path: Path) -> None:
    model = theirs(what, tmp_path / "theirs")
    first, _ = read_foreign(tmp_path / "theirs")
    save_model(first, tokens, tmp_path / "ours", "# A model\n")
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "theirs" / "model.safetensors").items():
        assert torch.equal(saved[name], tensor), name
    (tmp_path / "ours" / "config.json").write_text(json.dumps(without_ours(tmp_path / "ours")))
    again, _ = read_foreign(tmp_path / "ours")  # by transformers' own entries alone
    assert again.family == first.family
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert type(loaded) is type(model)
    assert not any(report.values()), report
    with torch.inference_mode():
        torch.testing.assert_close(loaded(texts).logits, model(texts).logits, atol=0, rtol=0)


def without_ours(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("chattune")["schema"] == 1
    return dict(config)


@pytest.mark.parametrize("what", ["mistral", "qwen2, some windows", "gemma2", "gemma3", "llama 3", "gpt2"])
def test_decoding_past_the_window_says_what_transformers_says(what: str, tmp_path: Path) -> None:
    model = theirs(what, tmp_path)
    ours, _ = read_foreign(tmp_path)
    start = torch.randint(7, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        wanted = model.generate(
            start, do_sample=False, max_new_tokens=30, min_new_tokens=30, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        cache, piece = ours.new_cache(2, 41), start
        for step in range(30):
            logits = ours(piece, cache=cache)[:, -1]
            torch.testing.assert_close(logits, wanted.logits[step], atol=CLOSE, rtol=CLOSE)
            piece = wanted.sequences[:, 11 + step, None]


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_short_weights_are_read_as_they_are_and_saved_as_they_came(kind: str, tokens: Path, tmp_path: Path) -> None:
    theirs("llama").to(getattr(torch, kind)).save_pretrained(tmp_path / "theirs")
    model, description = read_foreign(tmp_path / "theirs")
    assert (description.dtype, model.dtype) == (kind, torch.float32)
    save_model(model, tokens, tmp_path / "ours", "# A model\n", dtype=description.dtype)
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype and torch.equal(second[name], tensor), name
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == kind


def test_weights_in_several_files_are_the_weights_in_one(texts: Tensor, tmp_path: Path) -> None:
    model = theirs("qwen3")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert not (tmp_path / "model.safetensors").exists()
    with torch.inference_mode():
        torch.testing.assert_close(read_foreign(tmp_path)[0](texts), model(texts).logits, atol=CLOSE, rtol=CLOSE)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    theirs("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    return tmp_path


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.security
@pytest.mark.requirement("I06")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"lm_head.weight": "../model.safetensors"}), "no safetensors file of this folder"),
        (lambda m: m.update({"lm_head.weight": "/etc/passwd"}), "no safetensors file of this folder"),
        (lambda m: m.update({"lm_head.weight": "pytorch_model.bin"}), "no safetensors file of this folder"),
        (lambda m: m.update({"lm_head.weight": 3}), "no safetensors file of this folder"),
        (lambda m: m.update({"lm_head.weight": "model-00009.safetensors"}), "which is missing"),
        (lambda m: m.update({"more.weight": m["lm_head.weight"]}), "lacks more.weight, which the index places there"),
        (lambda m: m.pop("model.layers.0.input_layernorm.weight"), "has .*input_layernorm.weight, which the index does not place"),
        (lambda m: m.clear(), "holds no weight_map"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(sharded: Path, change: Callable[[dict[str, str]], object], message: str) -> None:
    read_foreign(sharded)
    change_index(sharded, change)
    with pytest.raises(CorruptError, match=message):
        read_foreign(sharded)


@pytest.mark.security
@pytest.mark.requirement("I06")
def test_all_that_is_wrong_with_the_tensors_is_told_at_once(tmp_path: Path) -> None:
    theirs("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:100].clone()
    tensors["model.norm.weight"] = torch.ones(48, dtype=torch.float64)
    tensors["evil"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptError) as caught:
        read_foreign(tmp_path)
    for trouble in (
        "lacks model.layers.1.mlp.up_proj.weight", "has the unknown tensor evil", "model.embed_tokens.weight is 100×48, not 300×48",
        "model.norm.weight holds F64",
    ):  # fmt: skip
        assert trouble in str(caught.value)
    tensors = {name: tensor.clone() for name, tensor in theirs("llama").state_dict().items()}
    tensors["model.norm.weight"][0] = math.nan
    tensors["lm_head.weight"][1, 1] = math.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptError, match="not finite") as caught:
        read_foreign(tmp_path)
    assert "model.norm.weight" in str(caught.value) and "lm_head.weight" in str(caught.value)


def test_older_files_are_read_and_what_they_have_too_much_is_told(texts: Tensor, tmp_path: Path) -> None:
    """GPT-2 as its makers saved it: without its head's prefix, with masks as buffers; and a tied head that is stored."""
    model = theirs("gpt2", tmp_path)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    ours, description = read_foreign(tmp_path)
    assert {"h.0.attn.bias", "h.0.attn.masked_bias", "lm_head.weight"} <= set(description.ignored)
    with torch.inference_mode():
        torch.testing.assert_close(ours(texts), model(texts).logits, atol=CLOSE, rtol=CLOSE)
    tensors["lm_head.weight"][0, 0] += 1.0
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptError, match=r"lm_head\.weight differs from"):
        read_foreign(tmp_path)


@pytest.mark.security
@pytest.mark.requirement("I04")
def test_entries_that_nobody_follows_are_listed_and_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs("qwen2", tmp_path)
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()\n"
    (tmp_path / "modeling_evil.py").write_text(code)
    exec(code)  # the positive control: this is what running it would do
    assert marker.exists()
    marker.unlink()
    monkeypatch.syspath_prepend(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    tricks = {
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}, "_attn_implementation_internal": "modeling_evil/kernel",
        "custom_pipelines": {"x": {"impl": "modeling_evil.Evil"}}, "mystery": 3,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({**config, **tricks}))
    _, description = read_foreign(tmp_path)
    assert set(description.ignored) == set(tricks)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "describes no model: kv_heads is 2: must divide the heads 5"),
        ({"num_hidden_layers": -1, "hidden_size": "x"}, "hidden_size is 'x', not a whole number; num_hidden_layers is -1"),
        ({"num_hidden_layers": 10**9}, "describes no model: layers"),
        ({"num_hidden_layers": 200}, "describes a model of"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000"),
        ({"vocab_size": 301}, r"model\.embed_tokens\.weight is 300×48, not 301×48"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_configuration_that_is_not_that_of_the_weights_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    theirs("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ArtifactError, match=message):
        read_foreign(tmp_path)


def test_what_is_neither_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"PK\x03\x04")
    for path, message in ((tmp_path / "x.bin", "neither a Hugging Face directory nor a GGUF"), (tmp_path / "y", "does not exist")):
        with pytest.raises(ArtifactError, match=message):
            read_foreign(path)


def test_a_model_is_saved_under_the_name_it_came_by_and_refused_under_another() -> None:
    """Mistral without a window computes what Llama does; the name is kept."""
    shape: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "qk_norm": False}
    plain = GPT(**shape).resolved()
    found = architecture_of(plain)
    assert found is not None and found.name == "llama"
    kept = architecture_of(GPT(**shape, saved_as="mistral").resolved())
    assert kept is not None and kept.name == "mistral"
    assert architecture_of(GPT(**shape, activation="relu_squared").resolved()) is None
    with pytest.raises(SettingError, match="a qwen2 model cannot hold biases 'none'"):
        GPT(**shape, saved_as="qwen2").resolved()
    assert set(ARCHITECTURES) == {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2"}


def test_a_model_that_no_library_knows_is_saved_and_read_under_our_own_names(tokens: Path, tmp_path: Path) -> None:
    model = GPT(layers=2, width=32, heads=4, activation="relu_squared", logit_softcap=15.0).build(VOCABULARY, seed=0)
    save_model(model, tokens, tmp_path, "# A model\n")
    again = load_model(tmp_path)
    assert again.family == model.family
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_reading_takes_no_more_memory_than_the_model_its_file_and_a_little(tmp_path: Path) -> None:
    """The bar is 64 MiB over model and file: a table of 65,536 × 512 (128 MiB in float32) leaves no room for a second copy."""
    model = GPT(layers=1, width=512, qk_norm=False).empty(65536)
    tensors, config = model.exported()
    write({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, tmp_path / "model.safetensors", "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(config))
    program = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from chattune.models.foreign import read_foreign\n"
        "import chattune.models.families._gpt, safetensors.torch\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model, _ = read_foreign(Path(sys.argv[1]))\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(after - before, sum(p.numel() for p in model.parameters()) * 4 // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    taken, size = map(int, done.stdout.split())
    assert taken < size + (tmp_path / "model.safetensors").stat().st_size // 1024 + 64 * 1024
