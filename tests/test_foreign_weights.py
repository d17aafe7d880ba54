"""Weights of other libraries: read into the GPT family and written back, with the logits that transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from chattune.models.checkpoint import save_model
from chattune.models.families.gpt import GPT
from chattune.models.foreign import read_foreign
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
        "Qwen3", {**SHAPE, "head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
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
