"""The contract of every optimizer, over whatever stands in the folder, and parity with the formulas that define some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from chattune.core.errors import ResumeError, SettingError
from chattune.core.part import kind
from chattune.train.optimizers import Optimizer
from chattune.train.optimizers._muon import NEAR, orthogonalised, polynomials
from chattune.train.state import Snapshots

NAMES = kind("optimizers").names()
RATE = 0.02


def optimizer(name: str, **settings: Any) -> Optimizer:
    return kind("optimizers").load(name)(**{"lr": RATE, **settings})


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, torch.nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    shapes = {"wide": (6, 10), "tall": (12, 5), "fused": (12, 6), "table": (9, 4), "gain": (7,)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=random).to(dtype)) for name, shape in shapes.items()}


def groups(p: dict[str, torch.nn.Parameter]) -> list[dict[str, Any]]:
    matrices = ["wide", "tall", "fused"]
    splits = [(), (), (6, 6)]
    return [
        {"params": [p[n] for n in matrices], "names": matrices, "role": "matrix", "decay": True, "splits": splits},
        {"params": [p["table"]], "names": ["table"], "role": "embedding", "decay": True, "splits": [()]},
        {"params": [p["gain"]], "names": ["gain"], "role": "vector", "decay": False, "splits": [()]},
    ]


def quadratic(p: dict[str, torch.nn.Parameter]) -> Tensor:
    return sum((value.float() - 0.5).square().sum() for value in p.values())  # type: ignore[return-value]


def descend(optimizer: torch.optim.Optimizer, p: dict[str, torch.nn.Parameter], count: int, factor: float = 1.0) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    for _ in range(count):
        optimizer.zero_grad()
        quadratic(p).backward()
        optimizer.step()


def copies(p: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in p.items()}


def unequal(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.requirement("R092", "R094")
def test_every_optimizer_lowers_a_quadratic(name: str) -> None:
    p = parameters()
    before = quadratic(p).item()
    descend(optimizer(name).build(groups(p)), p, 100)
    assert quadratic(p).item() < before / 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.requirement("C2")
def test_every_optimizer_resumes_to_the_bit_through_a_checkpoint(name: str, tmp_path: Path) -> None:
    p = parameters()
    whole = optimizer(name).build(groups(p))
    descend(whole, p, 3)
    snapshots = Snapshots(tmp_path)
    snapshots.save(3, p, whole, {})
    descend(whole, p, 4)
    found = snapshots.load()
    assert found is not None
    q = {key: torch.nn.Parameter(value) for key, value in found.model.items()}
    resumed = optimizer(name, lr=0.5).build(groups(q))  # its own rate must give way to the saved one
    found.restore_optimizer(resumed)
    descend(resumed, q, 4)
    assert unequal(p, q) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_restores_states_of_bfloat16_weights_to_the_bit(name: str, tmp_path: Path) -> None:
    p = parameters(torch.bfloat16)
    whole = optimizer(name).build(groups(p))
    descend(whole, p, 3)
    assert {value.dtype for value in p.values()} == {torch.bfloat16}
    snapshots = Snapshots(tmp_path)
    snapshots.save(3, p, whole, {})
    found = snapshots.load()
    assert found is not None
    q = {key: torch.nn.Parameter(value) for key, value in found.model.items()}
    resumed = optimizer(name).build(groups(q))
    found.restore_optimizer(resumed)
    before, after = whole.state_dict()["state"], resumed.state_dict()["state"]
    assert before.keys() == after.keys()
    for number, state in before.items():
        for key, value in state.items():
            assert value.dtype == after[number][key].dtype, f"{number}.{key}"
            assert torch.equal(value, after[number][key]), f"{number}.{key}"


@pytest.mark.parametrize("name", NAMES)
def test_rate_zero_changes_no_bit(name: str) -> None:
    p = parameters()
    before = copies(p)
    descend(optimizer(name).build(groups(p)), p, 2, factor=0.0)
    assert unequal(before, p) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.requirement("R112")
def test_decay_reaches_matrices_and_tables_and_spares_norms_and_biases(name: str) -> None:
    p = parameters()
    before = copies(p)
    built = optimizer(name, weight_decay=0.5).build(groups(p))
    for value in p.values():
        value.grad = torch.zeros_like(value)
    built.step()
    assert set(unequal(before, p)) == {"wide", "tall", "fused", "table"}
    for key in ("wide", "tall", "fused", "table"):
        assert p[key].norm() < before[key].norm()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_a_gradient_stay(name: str) -> None:
    p = parameters()
    before = copies(p)
    built = optimizer(name).build(groups(p))
    p["tall"].grad, p["gain"].grad = torch.ones_like(p["tall"]), torch.ones_like(p["gain"])
    built.step()
    assert set(unequal(before, p)) == {"tall", "gain"}


@pytest.mark.parametrize("name", NAMES)
def test_every_group_keeps_its_base_rate(name: str) -> None:
    for group in optimizer(name).build(groups(parameters())).param_groups:
        assert group["base_lr"] == group["lr"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_that_nobody_set_or_derived_is_told_by_its_path(name: str) -> None:
    with pytest.raises(SettingError, match=r"train\.optimizer\.lr"):
        optimizer(name, lr=None).build(groups(parameters()))


def test_a_state_for_other_parameters_is_refused(tmp_path: Path) -> None:
    p = parameters()
    built = optimizer("adamw").build(groups(p))
    descend(built, p, 1)
    snapshots = Snapshots(tmp_path)
    snapshots.save(1, p, built, {})
    found = snapshots.load()
    assert found is not None
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(ResumeError, match="does not fit"):
        found.restore_optimizer(other)


# AdamW


def one(value: list[float]) -> tuple[torch.nn.Parameter, list[dict[str, Any]]]:
    p = torch.nn.Parameter(torch.tensor([value], dtype=torch.float64))
    return p, [{"params": [p], "names": ["p"], "role": "matrix", "decay": True, "splits": [()]}]


def follow(built: torch.optim.Optimizer, p: torch.nn.Parameter, gradients: np.ndarray) -> np.ndarray:
    for gradient in gradients:
        p.grad = torch.tensor(gradient)[None]
        built.step()
    result: np.ndarray = p.detach().numpy()[0]
    return result


GRADIENTS = np.random.default_rng(1).normal(size=(20, 3)) * [1.0, 100.0, 0.01]
START = [1.0, -2.0, 3.0]


@pytest.mark.requirement("R089", "R112")
def test_adamw_equals_its_formula() -> None:
    p, g = one(START)
    got = follow(optimizer("adamw", lr=0.01, weight_decay=0.2).build(g), p, GRADIENTS)
    theta, m, v = np.array(START), np.zeros(3), np.zeros(3)
    for t, gradient in enumerate(GRADIENTS, 1):
        theta = theta - 0.01 * 0.2 * theta
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        theta = theta - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    np.testing.assert_allclose(got, theta, rtol=1e-12)  # float64: what is left is the order of operations


@pytest.mark.requirement("R089")
def test_bias_correction_makes_the_first_step_of_adam_as_long_as_the_rate() -> None:
    p, g = one(START)
    got = follow(optimizer("adamw", lr=0.01, weight_decay=0.0).build(g), p, GRADIENTS[:1])
    np.testing.assert_allclose(np.array(START) - got, 0.01 * np.sign(GRADIENTS[0]), rtol=1e-5)  # ε = 1e-8 beside |g| ≥ 1e-3


@pytest.mark.requirement("E5")
def test_beta2_of_adamw_is_that_of_language_models_and_its_card_names_the_papers() -> None:
    card = kind("optimizers").load("adamw")
    assert card().beta2 == 0.95
    assert 0.999 in next(row for row in card.describe() if row["name"] == "beta2")["search"]
    assert "0.999" in (card.__doc__ or "")


# SGD


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.requirement("R083", "R084", "R085")
def test_sgd_equals_torch_and_the_textbook(momentum: float, nesterov: bool) -> None:
    p, g = one(START)
    got = follow(optimizer("sgd", lr=0.05, momentum=momentum, nesterov=nesterov).build(g), p, GRADIENTS)
    q, _ = one(START)
    np.testing.assert_array_equal(got, follow(torch.optim.SGD([q], lr=0.05, momentum=momentum, nesterov=nesterov), q, GRADIENTS))
    theta, delta = np.array(START), np.zeros(3)
    for gradient in GRADIENTS:
        delta = momentum * delta - 0.05 * gradient  # Δθ ← ρΔθ − αg
        theta = theta + (momentum * delta - 0.05 * gradient if nesterov else delta)
    np.testing.assert_allclose(got, theta, rtol=1e-12)  # float64


@pytest.mark.requirement("R084")
def test_momentum_is_an_exponential_average_of_gradients_at_a_larger_rate() -> None:
    """Exercise 7-1: Δθ_t is the average with weights (1 − ρ)ρ^(t−i), times −α/(1 − ρ)."""
    p, g = one([0.0, 0.0, 0.0])
    built = optimizer("sgd", lr=0.05, momentum=0.9).build(g)
    before = follow(built, p, GRADIENTS[:-1]).copy()
    step = follow(built, p, GRADIENTS[-1:]) - before
    weights = (1 - 0.9) * 0.9 ** np.arange(len(GRADIENTS))[::-1]
    np.testing.assert_allclose(step, -0.05 / (1 - 0.9) * (weights @ GRADIENTS), rtol=1e-9)


@pytest.mark.requirement("R085")
def test_nesterov_is_faster_than_momentum_on_an_ill_conditioned_quadratic() -> None:
    curvature = torch.tensor([[1.0, 100.0]], dtype=torch.float64)

    def steps_until_small(nesterov: bool) -> int:
        p, g = one([1.0, 1.0])
        built = optimizer("sgd", lr=0.009, momentum=0.95, nesterov=nesterov).build(g)
        for step in range(5000):
            p.grad = curvature * p.detach()
            built.step()
            if (curvature * p.detach().square()).sum() < 1e-8:
                return step
        return 5000

    assert steps_until_small(True) < 0.8 * steps_until_small(False)


# decay against L2


@pytest.mark.requirement("R112", "P19")
def test_decoupled_decay_equals_l2_under_sgd_with_w_as_rate_times_lambda() -> None:
    rate, strength = 0.05, 0.3
    p, g = one(START)
    got = follow(optimizer("sgd", lr=rate, momentum=0.0, weight_decay=strength).build(g), p, GRADIENTS)
    theta = np.array(START)
    for gradient in GRADIENTS:
        theta = (1 - rate * strength) * theta - rate * gradient
    np.testing.assert_allclose(got, theta, rtol=1e-12)


@pytest.mark.requirement("R112", "P19")
def test_decoupled_decay_is_not_l2_under_adam() -> None:
    """Exercise 7-4: Adam divides L2's gradient too, so weights with large gradients are hardly regularised."""
    rate, strength = 0.01, 0.1
    plain, decoupled, coupled = (one([1.0, 1.0, 1.0]) for _ in range(3))
    zero = follow(optimizer("adamw", lr=rate, weight_decay=0.0).build(plain[1]), plain[0], GRADIENTS)
    adamw = follow(optimizer("adamw", lr=rate, weight_decay=strength).build(decoupled[1]), decoupled[0], GRADIENTS)
    built = optimizer("adamw", lr=rate, weight_decay=0.0).build(coupled[1])
    for gradient in GRADIENTS:
        adam_l2 = follow(built, coupled[0], gradient[None] + strength * coupled[0].detach().numpy())
    shrunk, shrunk_l2 = zero - adamw, zero - adam_l2
    # decoupled: every weight near 1 loses about 20·α·λ = 0.02, whatever its gradients; L2: a share that depends on them
    np.testing.assert_allclose(shrunk, 0.02, rtol=0.2)
    assert abs(shrunk_l2[1]) < 0.1 * abs(shrunk[1])
    assert abs(shrunk_l2[2]) > 3 * abs(shrunk[2])


# Muon


def textbook_orthogonalised(x: np.ndarray, iterations: int) -> np.ndarray:
    x = x / np.linalg.norm(x)
    for a, b, c in polynomials(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (8, 11), (8, 24), (24, 8), (11, 8), (1, 6)])
def test_orthogonalised_equals_the_plain_iteration_for_every_shape(shape: tuple[int, int], count: int) -> None:
    x = np.random.default_rng(2).normal(size=(count, *shape))
    got = orthogonalised(torch.tensor(x, dtype=torch.float32), 5).numpy()
    want = np.stack([textbook_orthogonalised(m, 5) for m in x])
    np.testing.assert_allclose(got, want, atol=6e-3)  # float32 rounding, grown by slopes of up to 26 where each polynomial ends


def composed(count: int, s: np.ndarray) -> np.ndarray:
    for a, b, c in polynomials(count):
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize(("count", "smallest"), [(1, 0.32), (2, 0.081), (3, 0.0194), (4, 0.0046), (5, 0.00108)])
def test_polynomials_bring_singular_values_within_a_tenth_of_one(count: int, smallest: float) -> None:
    error = np.abs(composed(count, np.geomspace(smallest, 1.0, 20001)) - 1)
    assert error.max() == pytest.approx(NEAR, rel=0.01)
    assert np.abs(composed(count, np.array([0.9 * smallest])) - 1) > NEAR  # no room is wasted
    below = composed(count, np.geomspace(1e-9, smallest, 20001))
    assert below.min() > 0
    assert below.max() < 1 + NEAR * 1.01


def test_each_polynomial_is_the_best_quintic_on_what_the_one_before_left() -> None:
    from scipy.optimize import linprog

    low, high = 0.0193, 1.0
    for a, b, c in polynomials(3):
        s = np.linspace(low, high, 4001)
        powers = np.stack([s, s**3, s**5, np.ones_like(s)], axis=1)
        above, below = powers * [1, 1, 1, -1], powers * [-1, -1, -1, -1]  # p(s) − 1 ≤ e and 1 − p(s) ≤ e
        limits = np.concatenate([np.ones(len(s)), -np.ones(len(s))])
        best = linprog([0, 0, 0, 1], A_ub=np.concatenate([above, below]), b_ub=limits, bounds=[(None, None)] * 3 + [(0, None)]).x[3]
        got = np.abs(a * s + b * s**3 + c * s**5 - 1).max()
        assert got == pytest.approx(best, abs=2e-3)  # the grid, and the smallest value in three digits
        low, high = 1 - got, 1 + got


def test_orthogonalised_moves_all_singular_values_near_one_and_keeps_the_directions() -> None:
    x = np.random.default_rng(3).normal(size=(1, 16, 48))
    u, _, vt = np.linalg.svd(x[0], full_matrices=False)
    got = orthogonalised(torch.tensor(x, dtype=torch.float32), 5).numpy()[0]
    inner = u.T @ got @ vt.T
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 1e-3
    assert np.diag(inner).min() > 0.89
    assert np.diag(inner).max() < 1.11


def test_muon_equals_its_formula_with_fused_matrices_taken_apart() -> None:
    p = parameters()
    start = copies(p)
    built = optimizer("muon", weight_decay=0.1).build(groups(p))
    gradients = {name: np.random.default_rng(4).normal(size=(3, *value.shape)) for name, value in p.items()}
    for step in range(3):
        for name, value in p.items():
            value.grad = torch.tensor(gradients[name][step], dtype=torch.float32)
        built.step()
    for name, parts in (("wide", 1), ("tall", 1), ("fused", 2)):
        theta, average = start[name].numpy().astype(np.float64), np.zeros(start[name].shape)
        for gradient in gradients[name]:
            average = 0.95 * average + 0.05 * gradient
            ahead = 0.95 * average + 0.05 * gradient
            pieces = [textbook_orthogonalised(m if m.shape[0] <= m.shape[1] else m.T, 5) for m in np.split(ahead, parts)]
            rows, columns = start[name].shape[0] // parts, start[name].shape[1]
            update = np.concatenate([piece if rows <= columns else piece.T for piece in pieces])
            theta = (1 - RATE * 0.1) * theta - RATE * max(1.0, rows / columns) ** 0.5 * update
        np.testing.assert_allclose(p[name].detach().numpy(), theta, atol=1e-4)  # float32, see above


def test_muon_leaves_tables_and_vectors_to_adamw() -> None:
    p, q = parameters(), parameters()
    descend(optimizer("muon", adamw_lr=0.01, weight_decay=0.1).build(groups(p)), p, 5)
    descend(optimizer("adamw", lr=0.01, weight_decay=0.1).build(groups(q)), q, 5)
    assert set(unequal(p, q)) == {"wide", "tall", "fused"}


@pytest.mark.parametrize("closure", [True, False])
def test_muon_takes_a_closure(closure: bool) -> None:
    p = parameters()
    built = optimizer("muon").build(groups(p))

    def loss() -> Tensor:
        built.zero_grad()
        value = quadratic(p)
        value.backward()
        return value

    before = quadratic(p).item()
    if closure:
        assert built.step(loss).item() == before
    else:
        loss()
        assert built.step() is None
    assert quadratic(p).item() < before
