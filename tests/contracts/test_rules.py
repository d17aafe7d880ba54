"""The contract of every decoding rule, over whatever stands in the folder; and the formula of each one of ours."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chattune.core.part import kind
from chattune.generate.rules import Rule

NAMES = kind("rules").names()
# Settings under which each rule of ours changes something; a rule that is not here is tested as it is by default.
STRONG: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.5}, "top_k": {"k": 3}, "top_p": {"p": 0.6}, "min_p": {"p": 0.3},
    "repetition_penalty": {"penalty": 1.5},
}  # fmt: skip


def rule(name: str, **settings: Any) -> Rule:
    return kind("rules").load(name)(**settings)


def some_logits(rows: int = 4, vocabulary: int = 50, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


HISTORY = torch.tensor([[3, 4, 5, -1], [0, 49, -1, -1], [7, 7, 7, 7], [-1, -1, -1, -1]])


@pytest.mark.parametrize("settings", ["default", "strong"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rule_keeps_a_distribution_and_its_input(name: str, settings: str) -> None:
    r = rule(name, **(STRONG.get(name, {}) if settings == "strong" else {}))
    masked = some_logits().masked_fill(some_logits(seed=1) > 0, -math.inf)
    for logits in (some_logits(), masked, some_logits(scale=1e4), torch.zeros(4, 50)):
        before, history = logits.clone(), HISTORY.clone()
        adjusted = r.adjust(logits, history)
        assert adjusted.shape == logits.shape
        assert torch.equal(logits, before), "the input is not changed"
        assert torch.equal(history, HISTORY)
        probabilities = adjusted.softmax(-1)
        assert probabilities.isfinite().all()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(4))
        assert not probabilities[before == -math.inf].any(), "what was impossible stays so"


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_treats_each_row_alone(name: str) -> None:
    r, logits = rule(name, **STRONG.get(name, {})), some_logits()
    together = r.adjust(logits, HISTORY)
    for row in range(4):
        torch.testing.assert_close(r.adjust(logits[row : row + 1], HISTORY[row : row + 1])[0], together[row])


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_bears_an_empty_history_and_a_single_token(name: str) -> None:
    r = rule(name, **STRONG.get(name, {}))
    assert r.adjust(some_logits(), torch.empty(4, 0, dtype=torch.long)).shape == (4, 50)
    assert r.adjust(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long)).softmax(-1).item() == 1.0


@pytest.mark.parametrize("name", sorted(STRONG))
def test_a_rule_of_ours_is_the_identity_by_default_and_not_when_strong(name: str) -> None:
    assert torch.equal(rule(name).adjust(some_logits(), HISTORY), some_logits())
    assert not torch.equal(rule(name, **STRONG[name]).adjust(some_logits(), HISTORY), some_logits())


@pytest.mark.requirement("R201")
def test_entropy_grows_with_temperature_from_greedy_to_uniform() -> None:
    logits = some_logits()
    entropies = []
    for temperature in (0.01, 0.1, 0.5, 1.0, 2.0, 100.0):
        log = rule("temperature", temperature=temperature).adjust(logits, HISTORY).log_softmax(-1)
        entropies.append(-(log.exp() * log).nan_to_num().sum(-1))
    for lower, higher in pairwise(entropies):
        assert (lower < higher).all()
    greedy = rule("temperature", temperature=0.0).adjust(logits, HISTORY).softmax(-1)
    assert torch.equal(greedy.argmax(-1), logits.argmax(-1))
    assert torch.equal(greedy.amax(-1), torch.ones(4))
    torch.testing.assert_close(rule("temperature", temperature=1e-6).adjust(logits, HISTORY).softmax(-1), greedy)
    assert float(entropies[-1].min()) > 0.99 * math.log(50)


@pytest.mark.requirement("E11", "E23")
def test_temperature_one_draws_from_the_models_own_estimate_and_lower_ones_from_its_modes() -> None:
    data = torch.tensor([[0.5, 0.3, 0.15, 0.05]])  # what the model learnt of the data
    distance = {}
    for temperature in (0.25, 0.5, 1.0, 2.0):
        drawn = rule("temperature", temperature=temperature).adjust(data.log(), HISTORY[:1]).softmax(-1)
        distance[temperature] = float((data * (data / drawn).log()).sum())
    assert distance[1.0] == pytest.approx(0.0, abs=1e-6)
    assert distance[0.25] > distance[0.5] > 0.05, "lower is not closer to the data"


@pytest.mark.requirement("R202", "E2b")
@given(seed=st.integers(0, 10_000), p=st.floats(0.01, 1.0), vocabulary=st.integers(1, 400), scale=st.floats(0.1, 10))
def test_the_nucleus_is_the_smallest_set_that_holds_the_share(seed: int, p: float, vocabulary: int, scale: float) -> None:
    logits = some_logits(1, vocabulary, seed, scale)
    adjusted = rule("top_p", p=p).adjust(logits, HISTORY[:1])[0].numpy()
    kept, shares = adjusted > -math.inf, logits[0].double().softmax(-1).numpy()
    rounding = 1e-9  # a running sum of at most 400 float64 shares
    assert shares[kept].sum() >= p - rounding
    assert shares[kept].sum() - shares[kept].min() < p + rounding, "without its least likely token it holds less than p"
    assert kept.all() or shares[kept].min() >= shares[~kept].max(), "the likeliest tokens are in it"
    np.testing.assert_array_equal(adjusted[kept], logits[0].numpy()[kept], err_msg="their ratios stay")


@given(seed=st.integers(0, 10_000), k=st.integers(0, 60))
def test_top_k_keeps_the_k_likeliest(seed: int, k: int) -> None:
    logits = some_logits(2, 50, seed)
    kept = rule("top_k", k=k).adjust(logits, HISTORY[:2]) > -math.inf
    assert (kept.sum(-1) == (k if 0 < k < 50 else 50)).all()
    for row in range(2):
        assert kept.all() or logits[row][kept[row]].min() > logits[row][~kept[row]].max()


@given(seed=st.integers(0, 10_000), p=st.floats(0.001, 1.0))
def test_min_p_keeps_what_is_likely_beside_the_likeliest(seed: int, p: float) -> None:
    logits = some_logits(1, 50, seed).double()
    shares = logits[0].softmax(-1)
    kept = rule("min_p", p=p).adjust(logits, HISTORY[:1])[0] > -math.inf
    certain = (shares / (p * shares.max()) - 1).abs() > 1e-9  # at the threshold itself rounding decides
    assert torch.equal(kept[certain], (shares >= p * shares.max())[certain])
    assert kept[shares.argmax()]


def test_repetition_penalty_weakens_what_was_said_and_nothing_else() -> None:
    logits = some_logits()
    adjusted = rule("repetition_penalty", penalty=1.5).adjust(logits, HISTORY)
    for row in range(4):
        said = {int(token) for token in HISTORY[row] if token >= 0}
        for token in range(50):
            before, after = float(logits[row, token]), float(adjusted[row, token])
            wanted = before if token not in said else before / 1.5 if before > 0 else before * 1.5
            assert after == pytest.approx(wanted)


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_rules_equal_those_of_transformers(settings: dict[str, float]) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    (name, value), logits = next(iter(settings.items())), some_logits(8, 200)
    theirs = {
        "temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper,
    }[name](value)  # fmt: skip
    ours = rule(name, **{{"temperature": "temperature", "top_k": "k"}.get(name, "p"): value})
    history = torch.zeros(8, 1, dtype=torch.long)
    np.testing.assert_allclose(ours.adjust(logits, history).softmax(-1), theirs(history, logits).softmax(-1), atol=1e-6)
