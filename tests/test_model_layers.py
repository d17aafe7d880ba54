"""Layers: each formula against a plain restatement, its gradient against finite differences, each kernel against the others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

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
        model = kind("families").load("gpt")(layers=12, width=32, heads=2, context=16, init_outputs="same").build(64, seed=0)
        if not residual:
            model.blocks = nn.ModuleList(_WithoutResiduals(block) for block in model.blocks)
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


class _WithoutResiduals(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, frame: object) -> Tensor:
        x = self.block.attention(self.block.attention_norm(x), frame)
        return self.block.feed_forward(self.block.feed_forward_norm(x))
