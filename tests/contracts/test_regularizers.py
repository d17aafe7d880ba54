"""The contract of every regularizer, over whatever stands in the folder, and the formula of each that we ship.

By convention the first setting of a regularizer is its strength, and 0 of it is nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from chattune.core.part import kind
from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.train.objectives import LossView
from chattune.train.regularizers import Regularizer

NAMES = kind("regularizers").names()
VOCABULARY = 40


def regularizer(name: str, **settings: Any) -> Regularizer:
    return kind("regularizers").load(name)(**settings)


def at_strength(name: str, value: float) -> Regularizer:
    strength = next(iter(kind("regularizers").load(name).model_fields))
    return regularizer(name, **{strength: value})


def model(seed: int = 0) -> LanguageModel:
    built = kind("families").load("gpt")(layers=2, width=16, heads=2, context=16, init_outputs="same").build(VOCABULARY, seed)
    built.train()
    return built


def batch() -> Batch:
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (4, 13), generator=random)
    segments = torch.zeros(4, 12, dtype=torch.int32)
    segments[3, 7:] = -1
    weights = torch.rand(4, 12, generator=random).masked_fill(segments < 0, 0.0)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights, torch.arange(12).expand(4, 12), segments)


def view_of(network: LanguageModel, seen: Batch, *, full: bool = True) -> LossView:
    return kind("objectives").load("next_token")().view(network, seen, full=full)


def train(network: LanguageModel, method: Regularizer | None, steps: int = 3, memory: Any = None, first: int = 0) -> list[float]:
    """The order in which the loop calls the verbs."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    losses = []
    for step in range(first, first + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        seen = batch() if method is None else method.augment(batch(), torch.Generator().manual_seed(step))
        view = view_of(network, seen)
        loss = view.loss if method is None else view.loss + method.penalty(view)
        loss.backward()
        if method is not None:
            method.gradients(network, step)
        optimizer.step()
        if method is not None:
            method.weights(network, step, memory)
        losses.append(loss.item())
    return losses


def weights_of(network: LanguageModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def differing_names(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


def number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", NAMES)
def test_zero_strength_changes_nothing_to_the_bit(name: str) -> None:
    plain, treated = model(), model()
    method = at_strength(name, 0.0)
    memory = method.begin(treated)
    method.edit(treated)
    assert train(plain, None) == train(treated, method, memory=memory)
    assert differing_names(weights_of(plain), weights_of(treated)) == []
    chosen = method.chosen(treated, memory)
    assert chosen is None or differing_names(weights_of(plain), chosen) == []


@pytest.mark.parametrize("name", NAMES)
def test_some_strength_changes_training_or_the_weights_that_are_kept(name: str) -> None:
    plain, treated = model(), model()
    method = at_strength(name, 0.3)
    memory = method.begin(treated)
    method.edit(treated)
    train(plain, None)
    train(treated, method, memory=memory)
    kept = method.chosen(treated, memory) or weights_of(treated)
    assert differing_names(weights_of(plain), kept)


@pytest.mark.parametrize("name", NAMES)
def test_all_weights_stay_finite_and_keep_their_shape_and_dtype(name: str) -> None:
    network = model()
    method = regularizer(name)
    memory = method.begin(network)
    method.edit(network)
    before = weights_of(network)
    train(network, method, memory=memory)
    for weights in (weights_of(network), method.chosen(network, memory) or {}):
        for key, value in weights.items():
            assert torch.isfinite(value).all()
            assert (value.shape, value.dtype) == (before[key].shape, before[key].dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.requirement("C2")
def test_memory_goes_through_a_state_dict_without_changing_a_bit(name: str) -> None:
    network = model()
    method = regularizer(name)
    memory = method.begin(network)
    if memory is None:
        assert method.chosen(network, None) is None
        return
    train(network, method, memory=memory)
    restored = method.begin(model(seed=1))
    restored.load_state_dict({key: value.clone() for key, value in memory.state_dict().items()})
    twin = copy.deepcopy(network)
    train(network, method, memory=memory, first=3)
    train(twin, method, memory=restored, first=3)
    a, b = method.chosen(network, memory), method.chosen(twin, restored)
    assert a is not None
    assert b is not None
    assert differing_names(a, b) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_of_a_batch_is_the_weighted_mean_over_its_tokens(name: str) -> None:
    """So that micro-batches, re-weighted by their target weights, give the penalty of the whole batch."""
    network, method = model().eval(), regularizer(name)
    whole = view_of(network, batch())
    parts = [view_of(network, share) for share in batch().shares(3)]
    total = number(method.penalty(whole)) * whole.weights.sum().item()
    assert sum(number(method.penalty(part)) * part.weights.sum().item() for part in parts) == pytest.approx(total, rel=1e-5)  # float32


# label smoothing


def smoothed_by_hand(view: LossView, target_share: float, other_share: float) -> float:
    """Cross-entropy with `target_share` for the right token and `other_share` for each other one, in float64 NumPy."""
    z = view.logits.detach().numpy().astype(np.float64)
    log_p = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
    soft = np.full(z.shape, other_share)
    soft[np.arange(len(z)), view.targets.numpy()] = target_share
    w = view.weights.numpy().astype(np.float64)
    return float((w * -(soft * log_p).sum(1)).sum() / w.sum())


@pytest.mark.requirement("R125", "E14")
@pytest.mark.parametrize("strength", [0.05, 0.3])
def test_loss_plus_penalty_is_the_smoothed_loss_in_both_conventions(strength: float) -> None:
    view = view_of(model(), batch())
    total = number(view.loss + regularizer("label_smoothing", strength=strength).penalty(view))
    K = VOCABULARY
    assert total == pytest.approx(smoothed_by_hand(view, 1 - strength + strength / K, strength / K), rel=1e-6)  # float32
    # ε/(K − 1) for the others: the same loss, with ε·K/(K − 1) as our strength
    printed = strength * (K - 1) / K
    assert total == pytest.approx(smoothed_by_hand(view, 1 - printed, printed / (K - 1)), rel=1e-6)


@pytest.mark.requirement("R125")
def test_label_smoothing_has_the_gradient_of_torch_s_own() -> None:
    logits = torch.randn(9, VOCABULARY, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets, weights = torch.arange(9), torch.linspace(0.1, 1.0, 9)
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    view = LossView(loss=(weights * nll).sum() / weights.sum(), logits=logits, targets=targets, weights=weights, nll=nll)
    (ours,) = torch.autograd.grad(view.loss + regularizer("label_smoothing", strength=0.2).penalty(view), logits, retain_graph=True)
    smoothed = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)
    (theirs,) = torch.autograd.grad((weights * smoothed).sum() / weights.sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)  # float32


@pytest.mark.requirement("E30")
def test_the_best_smoothed_loss_is_not_the_best_plain_loss_so_arms_are_compared_by_nll() -> None:
    """A model that is right and sure has the lower NLL and the higher smoothed loss; `nll` stays plain under smoothing."""
    targets, weights = torch.tensor([0]), torch.ones(1)

    def view(margin: float) -> LossView:
        logits = torch.zeros(1, VOCABULARY)
        logits[0, 0] = margin
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return LossView(loss=nll.mean(), logits=logits, targets=targets, weights=weights, nll=nll)

    method = regularizer("label_smoothing", strength=0.1)
    sure, calm = view(30.0), view(5.0)
    assert sure.nll < calm.nll
    assert sure.loss + method.penalty(sure) > calm.loss + method.penalty(calm)


# z loss


def test_z_loss_is_the_weighted_mean_of_the_squared_log_normaliser() -> None:
    view = view_of(model(), batch())
    z, w = view.logits.detach().numpy().astype(np.float64), view.weights.numpy()
    expected = 0.01 * (w * np.log(np.exp(z).sum(1)) ** 2).sum() / w.sum()
    assert number(regularizer("z_loss", strength=0.01).penalty(view)) == pytest.approx(expected, rel=1e-6)  # float32


# L2


@pytest.mark.requirement("R109")
def test_l2_adds_lambda_theta_to_the_gradients_of_all_but_norms() -> None:
    network = model()
    view_of(network, batch()).loss.backward()
    before = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    regularizer("l2", strength=0.25).gradients(network, 0)
    spared = {name for group in network.groups() if not group["decay"] for name in group["names"]}
    assert spared
    for name, p in network.named_parameters():
        assert p.grad is not None
        expected = before[name].numpy() + (0.0 if name in spared else 0.25 * p.detach().numpy())
        np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.requirement("R109")
def test_weights_are_smaller_the_stronger_l2_is() -> None:
    norms = []
    for strength in (0.0, 0.1, 1.0):
        network = model()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(15):
            optimizer.zero_grad()
            view_of(network, batch()).loss.backward()
            regularizer("l2", strength=strength).gradients(network, 0)
            optimizer.step()
        norms.append(sum(p.detach().square().sum().item() for p in network.parameters()))
    assert norms == sorted(norms, reverse=True)


@pytest.mark.requirement("R112")
def test_l2_under_sgd_is_weight_decay_of_rate_times_strength() -> None:
    network, twin = model(), model()
    decayed = {name for group in twin.groups() if group["decay"] for name in group["names"]}
    view_of(network, batch()).loss.backward()
    view_of(twin, batch()).loss.backward()
    regularizer("l2", strength=0.5).gradients(network, 0)
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for name, p in twin.named_parameters():
        assert p.grad is not None
        expected = p.detach() * (1 - 0.1 * 0.5 if name in decayed else 1.0) - 0.1 * p.grad
        torch.testing.assert_close(network.get_parameter(name).detach(), expected, rtol=1e-6, atol=1e-7)


# EMA


def test_ema_equals_its_formula_and_starts_without_bias() -> None:
    network, method = model(), regularizer("ema", decay=0.3)
    memory = method.begin(network)
    fresh = weights_of(network)
    assert method.chosen(network, memory) is None
    average: np.ndarray | None = None
    name = next(iter(fresh))
    for t in range(1, 9):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(t)))
        method.weights(network, t, memory)
        current = network.get_parameter(name).detach().numpy().astype(np.float64)
        decay = min(0.3, (t - 1) / (t + 9))
        average = current if average is None else decay * average + (1 - decay) * current
        chosen = method.chosen(network, memory)
        assert chosen is not None
        np.testing.assert_allclose(chosen[name].numpy(), average, rtol=1e-5, atol=1e-6)  # float32


def test_ema_of_a_noisy_walk_is_nearer_to_its_middle_than_the_last_weights_are() -> None:
    network, method = model(), regularizer("ema", decay=0.99)
    memory = method.begin(network)
    middle = weights_of(network)
    random = torch.Generator().manual_seed(0)
    for step in range(200):
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(middle[name] + torch.randn(p.shape, generator=random))
        method.weights(network, step, memory)
    chosen = method.chosen(network, memory)
    assert chosen is not None
    for name, p in network.named_parameters():
        assert (chosen[name] - middle[name]).norm() < 0.5 * (p - middle[name]).norm()


# dropout


@pytest.mark.requirement("E4", "R117")
def test_dropout_names_the_share_that_goes_and_the_share_that_stays() -> None:
    method = regularizer("dropout", drop=0.2)
    assert method.keep == pytest.approx(0.8)  # type: ignore[attr-defined]
    card = type(method).__doc__ or ""
    assert "drop" in card
    assert "keep = 1 − drop" in card


@pytest.mark.requirement("R117", "R119")
def test_dropout_acts_in_training_only_and_the_mean_output_stays() -> None:
    network = model()
    seen = batch()
    plain = network.eval()(seen.inputs)
    regularizer("dropout", drop=0.25).edit(network)
    assert torch.equal(network.eval()(seen.inputs), plain)
    network.train()
    torch.manual_seed(0)
    assert not torch.equal(network(seen.inputs), plain)
    from chattune.models.layers import dropout

    dropped = dropout(torch.ones(400_000), 0.25)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.004)  # 5 standard errors
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.005)
