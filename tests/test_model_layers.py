"""Layers: each formula against a plain restatement, its gradient against finite differences, each kernel against the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chattune.core.part import kind
from chattune.models import layers

EXACT = 1e-12  # float64, a few operations


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(8,), (3, 8)])
def test_rms_norm_is_its_formula_and_its_gradient_is_right(shape: tuple[int, ...]) -> None:
    x, weight = numbers(2, 3, 8).requires_grad_(), numbers(*shape, seed=1).requires_grad_()
    wanted = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(layers.rms_norm(x, weight, 1e-5), wanted, atol=EXACT, rtol=EXACT)
    assert torch.autograd.gradcheck(lambda x, weight: layers.rms_norm(x, weight, 1e-5), (x, weight))


def test_rms_norm_of_zeros_is_zero_and_has_finite_gradients() -> None:
    x, weight = torch.zeros(2, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    layers.rms_norm(x, weight, 1e-5).sum().backward()
    assert not layers.rms_norm(x, weight, 1e-5).detach().any()
    assert x.grad is not None and x.grad.isfinite().all()


def test_swiglu_is_its_formula_and_its_gradient_is_right() -> None:
    x = numbers(2, 3, 8).requires_grad_()
    gate, up = x[..., :4], x[..., 4:]
    torch.testing.assert_close(layers.swiglu(x), gate * torch.sigmoid(gate) * up, atol=EXACT, rtol=EXACT)
    assert torch.autograd.gradcheck(layers.swiglu, (x,))


def test_rotation_keeps_lengths_and_scores_depend_on_distance_only() -> None:
    q, k = numbers(1, 1, 2, 8, dtype=torch.float32), numbers(1, 1, 2, 8, seed=1, dtype=torch.float32)

    def turned(x: Tensor, position: int) -> Tensor:
        return layers.rotate(x, *layers.rotary(torch.tensor([[position]]), 8, 10000.0, torch.float32))

    torch.testing.assert_close(turned(q, 9).norm(dim=-1), q.norm(dim=-1))
    near, far = ((turned(q, p + 3) * turned(k, p)).sum(-1) for p in (0, 40))
    torch.testing.assert_close(near, far, atol=1e-5, rtol=1e-5)  # float32 angles of up to 43 radians
    assert not torch.allclose(near, (turned(q, 4) * turned(k, 0)).sum(-1), atol=1e-3)


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("keys", [12, layers.PLAIN_ATTENTION_LIMIT + 12])
@pytest.mark.parametrize("biased", ["causal", "windows", "none"])
def test_attention_is_its_formula_on_either_side_of_the_limit(kv: int, keys: int, biased: str) -> None:
    rows, heads, head = 2, 4, 8
    time = keys if biased != "none" else 1
    q, k, v = numbers(rows, heads, time, head), numbers(rows, kv, keys, head, seed=1), numbers(rows, kv, keys, head, seed=2)
    segments = (torch.arange(keys) // 5).expand(rows, -1).contiguous()
    bias = {
        "causal": layers.causal_bias(time, q.dtype, q.device), "windows": layers.window_bias(segments, q.dtype), "none": None,
    }[biased]  # fmt: skip
    scores = torch.einsum("bhtd,bhsd->bhts", q, k.repeat_interleave(heads // kv, 1)) / head**0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    wanted = torch.einsum("bhts,bhsd->bhtd", weights, v.repeat_interleave(heads // kv, 1))
    torch.testing.assert_close(layers.attention(q, k, v, bias, causal=biased == "causal"), wanted, atol=1e-10, rtol=1e-10)


def test_both_attention_kernels_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = layers.causal_bias(10, torch.float64, torch.device("cpu"))
    found = []
    for limit in (0, 100):
        monkeypatch.setattr(layers, "PLAIN_ATTENTION_LIMIT", limit)
        q, k, v = numbers(2, 4, 10, 8), numbers(2, 2, 10, 8, seed=1), numbers(2, 2, 10, 8, seed=2)
        for tensor in (q, k, v):
            tensor.requires_grad_()
        layers.attention(q, k, v, bias, causal=True).square().sum().backward()
        found.append((q.grad, k.grad, v.grad))
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=1e-10)


@pytest.mark.requirement("R117", "R119", "E4")
@pytest.mark.parametrize("drop", [0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(drop: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = layers.dropout(torch.ones(1_000_000), drop)
    rounded = round(drop * 256) / 256
    # Binomial: the share of a million has a standard deviation below 0.0005; five of them, and the mean's scale 1 / (1 − drop).
    assert float((out == 0).float().mean()) == pytest.approx(rounded, abs=0.0025)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.0025 / (1 - rounded))
    assert float(out.max()) == pytest.approx(1 / (1 - rounded))


@pytest.mark.requirement("R119")
def test_scaling_when_training_or_when_testing_is_equal_in_expectation() -> None:
    x, weight, drop = numbers(64), numbers(64, seed=1), 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Inverted dropout, averaged over masks, against the other form: keep the mask at training and scale by `keep` when testing.
        inverted = torch.stack([layers.dropout(x, drop) @ weight for _ in range(20_000)]).mean()
        masks = torch.rand(20_000, 64, dtype=torch.float64) >= drop
    scaled = ((masks * x) @ weight).mean() / (1 - drop)
    error = 5 * float((x * weight).square().sum().sqrt()) / 20_000**0.5  # five standard errors of a mean of 20,000
    assert float(inverted) == pytest.approx(float(x @ weight), abs=error)
    assert float(scaled) == pytest.approx(float(inverted), abs=2 * error)


def test_dropout_passes_gradients_where_it_kept_and_is_nothing_at_zero() -> None:
    x = torch.ones(1000, requires_grad=True)
    assert layers.dropout(x, 0.0) is x
    with torch.random.fork_rng():
        torch.manual_seed(3)
        out = layers.dropout(x, 0.25)
    out.sum().backward()
    assert torch.equal(x.grad, out)  # out = mask · 1 and its derivative is the mask


@pytest.mark.requirement("R072")
def test_residual_connections_let_a_deep_stack_learn() -> None:
    def loss_after_training(residual: bool) -> float:
        shape = {"layers": 12, "width": 32, "heads": 2, "context": 16, "init_outputs": "same", "residual": residual}
        model = kind("families").load("gpt")(**shape).build(64, seed=0)
        ids = torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    with_them, without = loss_after_training(True), loss_after_training(False)
    assert with_them < 0.5 * without, (with_them, without)
    assert without > 0.8 * math.log(64), "the plain stack stays near chance"


def test_a_linear_map_adds_its_bias() -> None:
    plain, biased = layers.Linear(4, 3), layers.Linear(4, 3, bias=True)
    with torch.no_grad():
        for map_ in (plain, biased):
            map_.weight.copy_(torch.arange(12.0).view(3, 4))
        assert biased.bias is not None and plain.bias is None
        biased.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.ones(2, 4)
    assert torch.equal(plain(x), torch.tensor([[6.0, 22.0, 38.0]] * 2))
    assert torch.equal(biased(x), plain(x) + biased.bias)


def test_a_norm_with_an_offset_begins_plain_and_keeps_its_weights_around_zero() -> None:
    norm, plain, x = layers.RMSNorm(8, 1e-5, offset=1.0), layers.RMSNorm(8, 1e-5), numbers(3, 8, dtype=torch.float32)
    assert not norm.weight.detach().any()
    torch.testing.assert_close(norm(x), plain(x), atol=0, rtol=0)
    with torch.no_grad():
        norm.weight.add_(0.5)
        plain.weight.add_(0.5)
    torch.testing.assert_close(norm(x), plain(x), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("geglu", lambda g: g * (1 + torch.erf(g / math.sqrt(2))) / 2),
        ("geglu_tanh", lambda g: g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) / 2),
        ("reglu", lambda g: g.clamp(min=0)),
        ("swiglu", lambda g: g / (1 + torch.exp(-g))),
    ],
)
def test_gated_activations_are_their_formulas(name: str, formula: Callable[[Tensor], Tensor]) -> None:
    x = numbers(2, 3, 8).requires_grad_()
    torch.testing.assert_close(layers.GATED[name](x), formula(x[..., :4]) * x[..., 4:], atol=EXACT, rtol=EXACT)
    assert torch.autograd.gradcheck(layers.GATED[name], (x,))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
        ("gelu_tanh", lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2),
        ("relu", lambda x: x.clamp(min=0)),
        ("relu_squared", lambda x: x.clamp(min=0) ** 2),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
    ],
)
def test_plain_activations_are_their_formulas(name: str, formula: Callable[[Tensor], Tensor]) -> None:
    x = numbers(2, 3, 8).requires_grad_()
    torch.testing.assert_close(layers.PLAIN[name](x), formula(x), atol=EXACT, rtol=EXACT)
    assert torch.autograd.gradcheck(layers.PLAIN[name], (x,))


def test_turning_by_position_has_the_gradient_of_turning_back() -> None:
    x, angle = numbers(2, 3, 2, 6).requires_grad_(), numbers(2, 3, 1, 3)
    turned = layers.rotate(x, angle.cos(), angle.sin())
    torch.testing.assert_close(layers.rotate(turned, angle.cos(), -angle.sin()), x, atol=EXACT, rtol=EXACT)
    assert torch.autograd.gradcheck(lambda x: layers.rotate(x, angle.cos(), angle.sin()), (x,))


def test_a_soft_cap_is_nearly_nothing_for_small_numbers_and_never_passed() -> None:
    x = torch.tensor([0.01, -0.01, 3.0, 1e4, -1e4], dtype=torch.float64)
    capped = layers.softcap(x, 5.0)
    torch.testing.assert_close(capped[:2], x[:2], atol=1e-7, rtol=0)  # x − x³/75
    torch.testing.assert_close(capped[2], 5 * torch.tanh(torch.tensor(0.6, dtype=torch.float64)), atol=EXACT, rtol=0)
    assert capped[3:].tolist() == [5.0, -5.0]


def test_capped_and_scaled_attention_is_its_formula_and_its_gradient_is_right() -> None:
    q, k, v = (numbers(1, heads, 6, 8, seed=heads + i).requires_grad_() for i, heads in enumerate((4, 2, 2)))
    bias = layers.causal_bias(6, q.dtype, q.device, window=3)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k.repeat_interleave(2, 1)) * 0.7
    wanted = torch.einsum("bhts,bhsd->bhtd", (2 * torch.tanh(scores / 2) + bias).softmax(-1), v.repeat_interleave(2, 1))
    found = layers.attention(q, k, v, bias, scale=0.7, cap=2.0)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    assert torch.autograd.gradcheck(lambda q, k, v: layers.attention(q, k, v, bias, scale=0.7, cap=2.0), (q, k, v))


@pytest.mark.parametrize("window", [1, 3, 12, None])
def test_biases_let_each_place_see_its_window_and_no_more(window: int | None) -> None:
    time = 12
    reach = window or time
    wanted = torch.tensor([[0 <= query - key < reach for key in range(time)] for query in range(time)])
    assert torch.equal(layers.causal_bias(time, torch.float32, torch.device("cpu"), window)[0, 0] == 0, wanted)
    segments = torch.tensor([[0] * 5 + [1] * 6 + [-1]])
    same = segments[0, :, None] == segments[0, None, :]
    assert torch.equal(layers.window_bias(segments, torch.float32, window)[0, 0] == 0, wanted & same)
    slots = torch.tensor([[4, 5], [10, 11]])  # two rows of different lengths, two tokens each
    for first in (0, max(0, 5 - reach)):
        found = layers.cache_bias(slots, torch.float32, window, first)
        assert found is not None
        assert torch.equal(found[:, 0] == 0, wanted[slots][:, :, first:])


def test_decoding_needs_no_bias_where_every_token_sees_all_keys() -> None:
    one = torch.tensor([[7], [7]])
    assert layers.cache_bias(one, torch.float32) is None
    assert layers.cache_bias(one, torch.float32, window=8) is None
    assert layers.cache_bias(one, torch.float32, window=4, first=4) is None
    assert layers.cache_bias(one, torch.float32, window=4) is not None
    assert layers.cache_bias(torch.tensor([[7], [6]]), torch.float32) is not None


def test_llama3_scaling_stretches_long_wavelengths_only() -> None:
    speeds = layers.rotary_speeds(64, 500000.0, torch.device("cpu"))
    scaled = layers.llama3_speeds(speeds, 8.0, 1.0, 4.0, 8192)
    length = 2 * math.pi / speeds
    assert torch.equal(scaled[length < 8192 / 4], speeds[length < 8192 / 4])
    torch.testing.assert_close(scaled[length > 8192], speeds[length > 8192] / 8, atol=0, rtol=1e-6)
    between = (length >= 8192 / 4) & (length <= 8192)
    assert bool(between.any()) and bool(((scaled > speeds / 8) & (scaled < speeds))[between].all())
