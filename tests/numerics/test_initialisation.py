"""What is claimed of fresh weights: bounds, variances, symmetry, and what thirty layers make of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chattune.core.part import choose
from chattune.models.activations import Activation
from chattune.models.initializers import Initializer, Place

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "lessons"))
import initialisation as lesson

WITHIN = 0.03  # of a variance; 120,000 draws have a standard error of 0.4 %
SEEDS = (1, 2)  # others than the lesson's


def drawn(name: str, inputs: int = 300, outputs: int = 400, **settings: Any) -> torch.Tensor:
    weight = torch.empty(outputs, inputs)
    part: Initializer = choose(Initializer, {"name": name, **settings})
    part.fill(weight, Place("w", inputs, outputs), torch.Generator().manual_seed(3))
    return weight


def two_layers(name: str, activation: str = "logistic") -> nn.Sequential:
    first, second = nn.Linear(5, 8, bias=False), nn.Linear(8, 3, bias=False)
    for layer in (first, second):
        part: Initializer = choose(Initializer, name)
        part.fill(layer.weight, Place("w", layer.in_features, layer.out_features), torch.Generator().manual_seed(layer.in_features))
    return nn.Sequential(first, Activation(activation), second)  # type: ignore[arg-type]


def trained(net: nn.Sequential, steps: int = 50) -> nn.Sequential:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 5, generator=random), torch.randint(3, (64,), generator=random)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


@pytest.mark.requirement("R038")
@pytest.mark.parametrize("name", ["zero", "constant"])
def test_units_that_begin_equal_stay_equal_however_long_they_learn(name: str) -> None:
    net = trained(two_layers(name))
    rows = net[0].weight.detach()
    assert rows.abs().max() > 0.01, "they did learn"
    # To rounding: some processors sum the rows at the edge of a product in another order than those within.
    torch.testing.assert_close(rows, rows[:1].expand_as(rows), atol=1e-6, rtol=1e-5)
    columns = net[2].weight.detach().T
    torch.testing.assert_close(columns, columns[:1].expand_as(columns), atol=1e-6, rtol=1e-5)


@pytest.mark.requirement("R039")
def test_random_weights_let_units_become_different() -> None:
    rows = trained(two_layers("fan_in"))[0].weight.detach()
    assert torch.pdist(rows).min() > 0.1


@pytest.mark.requirement("R038")
def test_a_model_of_one_layer_may_begin_at_zero() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=random)
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 1.5]) > 0).long()
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.bias)
    choose(Initializer, "zero").fill(layer.weight, Place("w", 4, 2), random)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x), y).backward()
        optimizer.step()
    assert float((layer(x).argmax(1) == y).float().mean()) > 0.95


@pytest.mark.requirement("R042", "E6")
def test_a_stated_standard_deviation_is_the_root_of_the_variance() -> None:
    assert float(drawn("normal", std=0.1).var()) == pytest.approx(0.01, rel=WITHIN)
    assert float(drawn("normal", std=0.01).var()) == pytest.approx(0.0001, rel=WITHIN)


@pytest.mark.requirement("R043", "E6", "E1b")
def test_variances_are_one_over_the_inputs_and_two_over_both_counts() -> None:
    assert float(drawn("fan_in").var()) == pytest.approx(1 / 300, rel=WITHIN)
    assert float(drawn("xavier_normal").var()) == pytest.approx(2 / 700, rel=WITHIN)
    assert float(drawn("xavier_uniform").var()) == pytest.approx(2 / 700, rel=WITHIN)
    assert float(drawn("he").var()) == pytest.approx(2 / 300, rel=WITHIN)
    assert float(drawn("he", fan="outputs", slope=0.5).var()) == pytest.approx(2 / (1.25 * 400), rel=WITHIN)


@pytest.mark.requirement("R045")
def test_a_uniform_draw_has_a_third_of_its_squared_bound_as_variance() -> None:
    weight = drawn("uniform", bound=0.3)
    assert float(weight.var()) == pytest.approx(0.3**2 / 3, rel=WITHIN)
    assert 0.299 < float(weight.abs().max()) <= 0.3


@pytest.mark.requirement("R046", "E1")
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_xaviers_bound_is_exact_for_tanh_and_four_times_as_wide_for_logistic_units(gain: float) -> None:
    bound = gain * (6 / 700) ** 0.5
    weight = drawn("xavier_uniform", gain=gain)
    assert 0.9999 * bound < float(weight.abs().max()) <= bound  # the largest of 120,000 draws
    assert float(weight.var()) == pytest.approx(gain**2 * 2 / 700, rel=WITHIN)


@pytest.mark.requirement("R048")
def test_the_forward_rule_keeps_the_signal_the_backward_rule_the_gradient_and_the_compromise_lies_between() -> None:
    inputs, outputs, samples = 500, 125, 2000
    random = torch.Generator().manual_seed(0)
    x, g = torch.randn(samples, inputs, generator=random), torch.randn(samples, outputs, generator=random)
    ratios = {}
    for rule, variance in (("forward", 1 / inputs), ("backward", 1 / outputs), ("compromise", 2 / (inputs + outputs))):
        w = torch.randn(outputs, inputs, generator=random) * variance**0.5
        ratios[rule] = float((x @ w.T).var() / x.var()), float((g @ w).var() / g.var())
    near = 0.03  # 62,500 weights: the variance that was drawn is within 1 % of the one asked for
    assert ratios["forward"] == pytest.approx((1.0, outputs / inputs), rel=near)
    assert ratios["backward"] == pytest.approx((inputs / outputs, 1.0), rel=near)
    assert ratios["compromise"] == pytest.approx((2 * inputs / (inputs + outputs), 2 * outputs / (inputs + outputs)), rel=near)
    assert sum(ratios["compromise"]) == pytest.approx(2.0, rel=near)


def through(label: str, activation: str, seed: int, **how: Any) -> lesson.Seen:
    case = next(case for case in lesson.CASES if case.label == label and case.activation == activation)
    return lesson.run(case, seed=seed, **how)


@pytest.mark.requirement("R040")
def test_weights_that_are_too_small_let_the_signal_vanish() -> None:
    seen = through("uniform ±0.01", "tanh", 1, dtype=torch.float32)
    factors = [b / a for a, b in zip(seen.signal[:10], seen.signal[1:10], strict=False)]
    assert factors == pytest.approx([256 * 0.01**2 / 3] * 9, rel=0.1)  # one 256×256 matrix each
    assert seen.signal[-1] == 0.0, "in float32 nothing is left at all"
    assert seen.gradient[0] == 0.0
    # Small net inputs see a logistic unit as a straight line: ½ + z/4.
    z = torch.linspace(-0.1, 0.1, 101)
    assert float((torch.sigmoid(z) - (0.5 + z / 4)).abs().max()) < 3e-5


@pytest.mark.requirement("R041", "R036")
def test_weights_that_are_too_large_saturate_units_whose_slope_is_then_near_zero() -> None:
    seen = through("normal, std 1", "tanh", 1)
    assert seen.saturated is not None and seen.saturated > 0.85
    beyond = torch.tensor([2.0, 3.0, 16.0], requires_grad=True)
    torch.tanh(beyond).sum().backward()
    assert beyond.grad is not None
    assert float(beyond.grad[0]) == pytest.approx(0.0707, abs=1e-4)
    assert float(beyond.grad[2]) < 1e-12


@pytest.mark.requirement("R046", "R047", "E1", "E1c")
@pytest.mark.parametrize("seed", SEEDS)
def test_thirty_layers_tell_the_right_gain_from_the_swapped_one(seed: int) -> None:
    tanh, swapped_tanh = through("Xavier", "tanh", seed), through("4 × Xavier (swapped)", "tanh", seed)
    assert 0.01 < tanh.signal[-1] < 0.03, "tanh itself leaves about 1/(2·30)"
    assert 0.01 < tanh.gradient[0] / tanh.gradient[-1] < 100
    assert tanh.saturated == 0.0
    assert swapped_tanh.saturated is not None and swapped_tanh.saturated > 0.5
    assert swapped_tanh.gradient[0] / swapped_tanh.gradient[-1] > 1e9
    logistic, swapped_logistic = through("4 × Xavier", "logistic", seed), through("Xavier (swapped)", "logistic", seed)
    assert logistic.signal[-1] > 1e15 * swapped_logistic.signal[-1]
    assert logistic.gradient[0] / logistic.gradient[-1] > 1e20 * swapped_logistic.gradient[0] / swapped_logistic.gradient[-1]
    assert logistic.signal[-1] < 1e-9, "the corrected gain keeps no variance either: the mean of ½ shifts the next layer"


@pytest.mark.requirement("R049", "E1c")
@pytest.mark.parametrize("seed", SEEDS)
def test_relus_keep_their_mean_square_with_he_and_lose_half_a_layer_with_xavier(seed: int) -> None:
    he, xavier, linear = through("He", "relu", seed), through("Xavier", "relu", seed), through("Xavier", "identity", seed)
    # Each layer's factor is 1 up to the noise of 256 units, √(5/256) = 0.14; over thirty layers 0.77 in the logarithm: three of these.
    noise = 10.0
    assert 1 / noise < he.square[-1] < noise
    assert 1 / noise < xavier.square[-1] * 2**30 < noise
    assert 1 / noise < he.gradient[0] / he.gradient[-1] < noise
    assert 1 / noise < linear.square[-1] < noise, "without an activation nothing is lost"


@pytest.mark.requirement("E1c")
def test_the_mean_square_and_not_the_variance_enters_the_next_sum() -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.sigmoid(torch.randn(4000, 256, generator=random))  # mean ½
    w = torch.randn(256, 256, generator=random) / 16
    z = a @ w.T
    assert float(z.square().mean()) == pytest.approx(float(a.square().mean()), rel=0.05)  # 256 · var(w) · E[a²], var(w) = 1/256
    assert float(a.square().mean()) > 5 * float(a.var())


def test_orthogonal_matrices_keep_every_length() -> None:
    square, tall, wide = drawn("orthogonal", 64, 64), drawn("orthogonal", 32, 64), drawn("orthogonal", 64, 32)
    x = torch.randn(10, 64)
    torch.testing.assert_close((x @ square.T).norm(dim=1), x.norm(dim=1), atol=0, rtol=1e-5)  # float32 sums of 64
    torch.testing.assert_close(tall.T @ tall, torch.eye(32), atol=1e-6, rtol=0)
    torch.testing.assert_close(wide @ wide.T, torch.eye(32), atol=1e-6, rtol=0)
    # Uniform over all rotations: the trace of one has mean 0 and variance 1; signs left as QR gives them would bias it.
    traces = []
    for seed in range(200):
        weight = torch.empty(8, 8)
        choose(Initializer, "orthogonal").fill(weight, Place("w", 8, 8), torch.Generator().manual_seed(seed))
        traces.append(float(weight.trace()))
    assert abs(sum(traces) / 200) < 4 / 200**0.5
