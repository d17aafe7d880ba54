"""The family hf: whatever decoder transformers has, behind the same interface, and none of the code that may come with a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from chattune.core.errors import SettingError, UnknownName
from chattune.models.families.hf import HF

transformers = pytest.importorskip("transformers")

# Rotary, learned and no positions; biases; parallel branches; one key head; scaled, capped and plain heads; states instead of keys.
ARCHITECTURES = ["gpt_neox", "opt", "bloom", "falcon", "gptj", "stablelm", "olmo2", "cohere", "granite", "gemma2", "mamba"]
VOCABULARY = 300
CLOSE = 1e-4  # float32 sums in another order, through two layers


def family(architecture: str, **settings: Any) -> HF:
    return HF(**{"architecture": architecture, "layers": 2, "width": 32, "heads": 4, "context": 32, **settings})


def ids(rows: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(7, VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(seed))


@pytest.mark.requirement("R077")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_transformers_however_they_are_asked_for(architecture: str) -> None:
    m, inputs = family(architecture).build(VOCABULARY, seed=0).eval(), ids(2, 14)
    with torch.no_grad():
        wanted = m.network(input_ids=inputs, use_cache=False).logits
        torch.testing.assert_close(m(inputs), wanted, atol=CLOSE, rtol=CLOSE)
        cache = m.new_cache(2, 14)
        pieces = [m(piece, cache=cache) for piece in inputs.split([6, 1, 1, 6], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), wanted, atol=CLOSE, rtol=CLOSE)
        packed = torch.cat([inputs[:1, :9], inputs[1:, :5]], 1)
        segments = torch.tensor([[0] * 9 + [1] * 5])
        alone = m(inputs[1:, :5])
        torch.testing.assert_close(m(packed, None, segments)[0, 9:], alone[0], atol=CLOSE, rtol=CLOSE)
        ragged = m.new_cache(2, 14)
        m(inputs, segments=torch.tensor([[0] * 14, [0] * 5 + [-1] * 9]), cache=ragged)
        assert ragged.lengths.tolist() == [14, 5]
        ragged.select(torch.tensor([1]))
        step = m(inputs[1:, 5:6], cache=ragged)
        torch.testing.assert_close(step[0, 0], m(inputs[1:, :6])[0, 5], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("architecture", ["granite", "gemma2", "cohere"])
def test_a_head_that_scales_or_caps_is_kept(architecture: str) -> None:
    """The hidden states are large, so that a cap bends the logits."""
    entries = {"logits_scaling": 4.0} if architecture == "granite" else {}
    m = family(architecture, config=entries).build(VOCABULARY, seed=0).eval()
    assert m.head_weight() is None, "not one matrix product"
    states = torch.linspace(-50, 50, 3 * 32).view(3, 32)
    weight = m.network.get_output_embeddings().weight
    config, plain = m.network.config, states @ weight.T
    wanted = {
        "granite": lambda: plain / config.logits_scaling,
        "gemma2": lambda: torch.tanh(plain / config.final_logit_softcapping) * config.final_logit_softcapping,
        "cohere": lambda: plain * config.logit_scale,
    }[architecture]()
    torch.testing.assert_close(m.head(states), wanted, atol=CLOSE, rtol=CLOSE)


def test_a_plain_head_is_told_so_that_a_loss_may_take_it_in_pieces() -> None:
    m = family("gpt_neox").build(VOCABULARY, seed=0)
    assert m.head_weight() is m.network.get_output_embeddings().weight


@pytest.mark.parametrize(
    "entry",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}},
        {"text_config": {"auto_map": {"AutoConfig": "x.Y"}}},
        {"_attn_implementation": "somebody/kernel"},
        {"_attn_implementation_internal": "somebody/kernel"},
        {"attn_implementation": "flash_attention_2"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"trust_remote_code": True},
    ],
)
@pytest.mark.security
@pytest.mark.requirement("I05")
def test_code_that_a_configuration_brings_is_refused_before_anything_is_built(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="refused"):
        HF(config={"model_type": "gpt_neox", **entry})
    HF(config={"model_type": "gpt_neox"})  # the same without it is taken


@pytest.mark.requirement("E10")
def test_an_encoder_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match="bert reads both ways"):
        family("bert").build(VOCABULARY, seed=0)


def test_what_transformers_does_not_know_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="gpt_neo") as caught:
        family("gpt_nex").build(VOCABULARY, seed=0)
    assert "gpt_neo" in (caught.value.hint or "")
    with pytest.raises(UnknownName, match="hiden_size"):
        family("gpt_neox", config={"hiden_size": 3}).build(VOCABULARY, seed=0)
    with pytest.raises(SettingError, match=r"\bdoes not run|cannot be built|for wrong"):
        family("gpt_neox", config={"num_attention_heads": 5}).build(VOCABULARY, seed=0)


def test_a_whole_configuration_leaves_nothing_to_the_dial() -> None:
    config = transformers.GPTNeoXConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=60).to_dict()
    m = HF(config=config).build(VOCABULARY, seed=0)
    assert m.family.architecture == "gpt_neox"
    assert m.network.config.hidden_size == 48
    assert m.family.context_length() == config["max_position_embeddings"]
    assert HF(config=config, context=64).context_length() == 64
    with pytest.raises(ValidationError, match="left open"):
        HF(config=config, layers=3)
    with pytest.raises(ValidationError, match="describes a gpt_neox"):
        HF(config=config, architecture="opt")


def test_fresh_weights_leave_the_callers_randomness_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    family("opt").build(VOCABULARY, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tied_head_is_stored_once() -> None:
    names = set(family("gpt_neox").build(VOCABULARY, seed=0).exported()[0])
    assert sum("embed" in name for name in names) == 1


def test_numbers_that_json_does_not_know_are_read_and_written_as_transformers_writes_them(tmp_path: Path) -> None:
    """Mamba 2 bounds its steps by infinity."""
    config = transformers.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_heads=4, head_dim=16, state_size=8, num_hidden_layers=2, n_groups=1, chunk_size=8
    )
    theirs = transformers.Mamba2ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    chosen = HF(config={key: value for key, value in written.items() if key not in ("architectures", "dtype")})
    ours = chosen.build(VOCABULARY, seed=0).eval()
    assert ours.network.config.time_step_limit[1] == math.inf
    ours.network.load_state_dict(theirs.state_dict())
    inputs = ids(2, 14)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs).logits, atol=CLOSE, rtol=CLOSE)
    assert ours.family.config["time_step_limit"] == written["time_step_limit"]
    assert json.loads(json.dumps(ours.family.dump(), allow_nan=False)) == ours.family.dump()
    with pytest.raises(SettingError, match="wrong"):
        HF(config={**chosen.config, "time_step_limit": [0.0, {"__float__": "much"}]}).build(VOCABULARY, seed=0)
