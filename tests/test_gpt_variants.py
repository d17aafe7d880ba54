"""Whatever the GPT family is set to compute, it keeps what a language model promises: caches, packing, counts, gradients, numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from chattune.core.config import validate
from chattune.core.errors import SettingError
from chattune.core.part import Settings
from chattune.models.families import Family
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel

VOCABULARY = 120
SHAPE: dict[str, Any] = {
    "layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 48, "context": 64, "init": {"name": "normal", "std": 0.2},
    "init_outputs": "same",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"qk_norm": False, "tied": False},
    "llama 3": {"qk_norm": False, "rope_scaling": {"factor": 4.0, "context": 16}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "mistral": {"qk_norm": False, "window": 5, "head": 6},
    "qwen2": {"qk_norm": False, "biases": "qkv"},
    "qwen3": {"head": 16},
    "gemma2": {
        "norm": {"name": "rms_norm", "offset": 1.0}, "norm_placement": "both", "activation": "geglu_tanh", "embedding_scale": 32**0.5,
        "attention_scale": 0.2, "attention_softcap": 5.0, "logit_softcap": 3.0, "window": 4, "global_layers": [1], "qk_norm": False,
    },
    "gemma3": {
        "norm": {"name": "rms_norm", "offset": 1.0}, "norm_placement": "both", "activation": "geglu_tanh", "embedding_scale": 32**0.5,
        "window": 4, "global_layers": [2], "rope_theta": 1e6, "local_rope_theta": 1e4,
        "rope_scaling": {"type": "linear", "factor": 8.0},
    },
    "gpt2": {
        "positions": "learned", "norm": "layer_norm", "biases": "all", "activation": "gelu_tanh", "kv_heads": 4, "qk_norm": False,
    },
    "the first transformer": {"positions": "learned", "norm": "layer_norm", "norm_placement": "post", "activation": "relu"},
    "no positions, squared relu, layer norm of heads": {"positions": "none", "activation": "relu_squared", "norm": "layer_norm"},
    "no residuals": {"residual": False, "biases": "attention", "activation": "reglu"},
    "one head, odd, no positions": {"positions": "none", "head": 7, "heads": 1, "kv_heads": 1, "activation": "silu"},
}  # fmt: skip
CLOSE = 1e-5  # float32 sums of some hundred terms of order 1, taken in another order


def model(variant: str, **settings: Any) -> LanguageModel:
    """A small model whose vectors are random, too."""
    built = GPT(**{**SHAPE, **VARIANTS[variant], **settings}).build(VOCABULARY, seed=0).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in built.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    return built


def ids(rows: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(7, VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS)
def test_later_tokens_never_change_earlier_logits(variant: str) -> None:
    m, first = model(variant), ids(2, 20)
    second = torch.cat([first[:, :7], ids(2, 13, seed=1)], 1)
    torch.testing.assert_close(m(first)[:, :7], m(second)[:, :7], atol=0, rtol=0)
    assert not torch.equal(m(first)[:, 7:], m(second)[:, 7:])


@pytest.mark.parametrize("pieces", [[1] * 20, [7, 1, 1, 11]])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_decoding_equals_full_forward(variant: str, pieces: list[int]) -> None:
    m, inputs = model(variant), ids(3, 20)
    cache = m.new_cache(3, 20)
    found = torch.cat([m(piece, cache=cache) for piece in inputs.split(pieces, 1)], 1)
    torch.testing.assert_close(found, m(inputs), atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_decoding_of_ragged_rows_equals_each_alone(variant: str) -> None:
    m, inputs, lengths = model(variant), ids(3, 12), [12, 6, 1]
    segments = torch.tensor([[0] * n + [-1] * (12 - n) for n in lengths])
    cache, more = m.new_cache(3, 24), ids(3, 8, seed=1)
    m(inputs, segments=segments, cache=cache)
    found = torch.cat([m(more[:, step : step + 1], cache=cache) for step in range(8)], 1)
    for row, length in enumerate(lengths):
        alone = m(torch.cat([inputs[row : row + 1, :length], more[row : row + 1]], 1))[0, length:]
        torch.testing.assert_close(found[row], alone, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_windows_and_padding_have_the_logits_they_have_alone(variant: str) -> None:
    m, inputs = model(variant), ids(1, 24)
    positions = torch.tensor([[*range(4), *range(11), *range(7), 0, 0]])
    segments = torch.tensor([[0] * 4 + [1] * 11 + [2] * 7 + [-1] * 2])
    packed, start = m(inputs, positions, segments), 0
    for length in (4, 11, 7):
        alone = m(inputs[:, start : start + length])
        torch.testing.assert_close(packed[:, start : start + length], alone, atol=CLOSE, rtol=CLOSE)
        start += length
    assert packed.isfinite().all()


@pytest.mark.requirement("R074", "R076")
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_operations_are_known_without_building(variant: str) -> None:
    m, inputs = model(variant), ids(2, 32)
    assert m.family.parameters(VOCABULARY) == sum(p.numel() for p in m.parameters())
    with FlopCounterMode(display=False) as counter:
        m(inputs)
    # The count of matrix products and attention; 5 % is the promise, and nothing else is counted.
    assert m.family.operations(VOCABULARY, 32) == pytest.approx(counter.get_total_flops() / inputs.numel(), rel=0.05)


@pytest.mark.requirement("R095")
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_finite_differences(variant: str) -> None:
    m, inputs = model(variant, init={"name": "normal", "std": 0.5}).double().train(), ids(2, 8)

    def loss() -> Tensor:
        return cross_entropy(m(inputs)[:, :-1].flatten(0, 1), inputs[:, 1:].flatten())

    loss().backward()
    random = torch.Generator().manual_seed(0)
    for name, weight in m.named_parameters():
        direction = torch.randn(weight.shape, generator=random, dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            weight += step * direction
            above = loss()
            weight -= 2 * step * direction
            below = loss()
            weight += step * direction
        assert weight.grad is not None, name
        # Central differences: an error of order step² from the third derivative, and 1e-16 / step from rounding; a ReLU may bend.
        assert float((weight.grad * direction).sum()) == pytest.approx(float(above - below) / (2 * step), rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_follows_float32_and_dropout_acts_in_training_only(variant: str) -> None:
    m, inputs = model(variant, init={"name": "normal", "std": 0.1}), ids(4, 24)

    def loss(logits: Tensor) -> float:
        return float(cross_entropy(logits[:, :-1].flatten(0, 1).detach().float(), inputs[:, 1:].flatten()))

    plain = m(inputs)
    m.set_dropout(0.5)
    assert torch.equal(m(inputs), plain)
    assert not torch.equal(m.train()(inputs), plain)
    m.set_dropout(0.0)
    assert torch.equal(m(inputs), plain)
    m.eval()
    short = m.to(torch.bfloat16)
    assert loss(short(inputs)) == pytest.approx(loss(plain), abs=0.05)  # 8 bits of mantissa; errors of single tokens cancel
    cache = short.new_cache(4, 24)
    cached = torch.cat([short(inputs[:, :10], cache=cache), short(inputs[:, 10:], cache=cache)], 1)
    assert loss(cached) == pytest.approx(loss(plain), abs=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_kernels_of_attention_agree(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m, inputs = model(variant), ids(2, 24)
    plain = m(inputs)
    monkeypatch.setattr("chattune.models.layers.PLAIN_ATTENTION_LIMIT", 4)
    torch.testing.assert_close(m(inputs), plain, atol=CLOSE, rtol=CLOSE)
    cache = m.new_cache(2, 24)
    found = torch.cat([m(piece, cache=cache) for piece in inputs.split([9] + [1] * 15, 1)], 1)
    torch.testing.assert_close(found, plain, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_weights_are_those_of_the_settings(variant: str) -> None:
    built = GPT(**{**SHAPE, **VARIANTS[variant], "init": "fan_in", "init_outputs": "zero"}).build(VOCABULARY, seed=0)
    for name, weight in built.named_parameters():
        if name.endswith("bias") or (name.startswith("blocks") and name.endswith("output.weight")):
            assert not weight.detach().any(), name
        elif weight.ndim == 1:
            assert bool((weight.detach() == (0.0 if "gemma" in variant else 1.0)).all()), name  # Gemma adds 1 when it uses them
        else:
            assert weight.detach().any(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_one_graph_without_breaks(variant: str) -> None:
    torch.compiler.reset()  # the compiler counts how often it met the same code
    m, inputs = model(variant).train(), ids(2, 24)
    segments = torch.tensor([[0] * 10 + [1] * 14] * 2)
    positions = torch.tensor([[*range(10), *range(14)]] * 2)
    whole = torch.compile(m, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(inputs, positions, segments), m(inputs, positions, segments), atol=CLOSE, rtol=CLOSE)


def test_a_local_layer_sees_no_further_than_its_window() -> None:
    m, inputs = model("mistral", layers=1), ids(1, 20)
    changed = inputs.clone()
    changed[0, 7] = (changed[0, 7] + 1) % VOCABULARY
    same = (m(inputs) == m(changed)).all(-1)[0]
    assert same[:7].all() and same[12:].all(), "outside the 5 tokens that see it"
    assert not same[7:12].any()
    # Through a second layer it reaches twice as far, less one.
    deeper = model("mistral", layers=2)
    same = (deeper(inputs) == deeper(changed)).all(-1)[0]
    assert same[16:].all() and not same[7:16].any()


@pytest.mark.parametrize(
    ("settings", "path", "message"),
    [
        ({"norm": "batch_norm"}, "model.norm", "'batch_norm' mixes tokens.*rms_norm and layer_norm fit"),
        ({"norm": "weight_norm"}, "model.norm", "'weight_norm' changes the matrices"),
        ({"norm": "local_response_norm"}, "model.norm", "'local_response_norm'.*rms_norm and layer_norm fit"),
        ({"head": 7}, "model.head", "even"),
        ({"global_layers": [1]}, "model.global_layers", "without a window"),
        ({"window": 8, "global_layers": [3]}, "model.global_layers", "from 0 to 2"),
        ({"rope_scaling": {"low": 4.0, "high": 1.0}}, "model.rope_scaling", "low must be below high"),
        ({"activation": "swish"}, "model.activation", "'swiglu'"),
        ({"saved_as": "gpt2"}, "model.saved_as", "a gpt2 model cannot hold positions 'rotary'; activation 'swiglu'"),
        ({"saved_as": "llama", "window": 8}, "model.saved_as", "a llama model cannot hold window 8"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_with_what_would(settings: dict[str, Any], path: str, message: str) -> None:
    class Recipe(Settings):
        model: Family

    shape = {key: SHAPE[key] for key in ("layers", "width", "heads")}
    with pytest.raises(SettingError, match=message) as caught:
        validate(Recipe, {"model": {"name": "gpt", "qk_norm": False, **shape, **settings}}).model.resolved()
    assert str(caught.value.path).startswith(path)
