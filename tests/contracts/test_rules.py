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

from chattune.core.config import validate
from chattune.core.errors import SettingError
from chattune.core.part import kind
from chattune.generate.rules import Rule

NAMES = kind("rules").names()
# Settings under which each rule of ours changes something; a rule that is not here is tested as it is by default.
STRONG: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.5}, "top_k": {"k": 3}, "top_p": {"p": 0.6}, "min_p": {"p": 0.3},
    "repetition_penalty": {"penalty": 1.5}, "typical_p": {"p": 0.6}, "presence_penalty": {"penalty": 1.5},
    "frequency_penalty": {"penalty": -0.7}, "no_repeat_ngram": {"size": 1}, "logit_bias": {"bias": {0: -100.0}},
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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("typical_p", {"p": 1e-9}), ("no_repeat_ngram", {"size": 1}), ("no_repeat_ngram", {"size": 2}),
        ("logit_bias", {"bias": dict.fromkeys(range(6), -100.0)}), ("logit_bias", {"bias": {2: 100.0}}),
    ],
)  # fmt: skip
def test_a_rule_at_its_extreme_leaves_a_token_in_each_row(name: str, settings: dict[str, Any]) -> None:
    r, history = rule(name, **settings), torch.tensor([[0, 1, 2, 3, 4, 5, 0], [2, 2, 2, 2, 2, 2, 2]])
    only = torch.tensor([[-math.inf, 3.0, *[-math.inf] * 4], [0.0, *[-math.inf] * 5]])  # a single token is possible
    for logits in (some_logits(2, 6), only):
        adjusted = r.adjust(logits, history)
        assert (adjusted > -math.inf).any(-1).all()
        assert not (adjusted > -math.inf)[logits == -math.inf].any()


@given(seed=st.integers(0, 10_000), p=st.floats(0.01, 0.99), vocabulary=st.integers(1, 200), scale=st.floats(0.1, 10))
def test_typical_p_keeps_what_is_nearest_to_the_entropy(seed: int, p: float, vocabulary: int, scale: float) -> None:
    logits = some_logits(1, vocabulary, seed, scale)
    kept = rule("typical_p", p=p).adjust(logits, HISTORY[:1])[0].numpy() > -math.inf
    shares = logits[0].double().softmax(-1).numpy()
    distance = np.abs(-np.log(shares) - -(shares * np.log(shares)).sum())
    rounding = 1e-9  # a running sum of at most 200 float64 shares
    assert shares[kept].sum() >= p - rounding
    assert shares[kept].sum() - shares[kept][distance[kept].argmax()] < p + rounding, "without its least typical token too little"
    assert kept.all() or distance[kept].max() <= distance[~kept].min() + rounding


def test_typical_p_leaves_out_a_token_that_says_too_little() -> None:
    # One token at 0.7, the others share 0.3: the entropy is 1.99 nats; the likeliest surprises by 0.36, the others by 4.6.
    logits = torch.tensor([[0.7, *[0.01] * 30]]).log()
    assert int((rule("typical_p", p=0.2).adjust(logits, HISTORY[:1]) > -math.inf).sum()) == 1
    # At 0.3 against 70 times 0.01 the entropy is 3.58: the tail, at 4.6, is nearer to it than the likeliest at 1.2.
    logits = torch.tensor([[0.3, *[0.01] * 70]]).log()
    kept = rule("typical_p", p=0.2).adjust(logits, HISTORY[:1])[0] > -math.inf
    assert not kept[0]
    assert kept[1:].all(), "equals are kept"


def test_presence_is_counted_once_and_frequency_each_time_over_the_reply_alone() -> None:
    logits = some_logits()
    presence = rule("presence_penalty", penalty=0.5).adjust(logits, HISTORY)
    frequency = rule("frequency_penalty", penalty=0.5).adjust(logits, HISTORY)
    for row in range(4):
        for token in range(50):
            count = HISTORY[row].tolist().count(token)
            assert float(logits[row, token] - presence[row, token]) == pytest.approx(0.5 * (count > 0), abs=1e-5)
            assert float(logits[row, token] - frequency[row, token]) == pytest.approx(0.5 * count, abs=1e-5)
    counted = {name: kind("rules").load(name).counts_prompt for name in NAMES}
    assert {name for name, prompt in counted.items() if not prompt} == {"presence_penalty", "frequency_penalty"}


def test_a_reply_without_repeated_runs_is_what_is_left() -> None:
    logits, history = torch.zeros(3, 9), torch.tensor([[1, 2, 3, 1, 2], [1, 2, 1, 2, -1], [4, -1, -1, -1, -1]])
    for size, banned in {1: [{1, 2, 3}, {1, 2}, {4}], 2: [{3}, {1}, set()], 3: [{3}, {1}, set()], 4: [set(), set(), set()]}.items():
        adjusted = rule("no_repeat_ngram", size=size).adjust(logits, history)
        assert [set((row == -math.inf).nonzero().flatten().tolist()) for row in adjusted] == banned, size


def test_a_bias_is_added_and_its_ends_ban_and_force() -> None:
    logits = some_logits(2, 8) * 100  # further apart than any bias
    adjusted = rule("logit_bias", bias={1: 2.5, 3: -7.0}).adjust(logits, HISTORY[:2])
    torch.testing.assert_close(adjusted - logits, torch.tensor([0, 2.5, 0, -7.0, 0, 0, 0, 0]).expand(2, 8), atol=1e-4, rtol=0)
    banned = rule("logit_bias", bias={1: -100}).adjust(logits, HISTORY[:2]).softmax(-1)
    assert not banned[:, 1].any()
    forced = rule("logit_bias", bias={1: 100, 2: 100, 3: 99}).adjust(logits, HISTORY[:2]).softmax(-1)
    torch.testing.assert_close(forced[:, 1:3], logits[:, 1:3].softmax(-1))


def test_a_bias_for_what_does_not_exist_is_refused_by_name() -> None:
    part = kind("rules").load("logit_bias")
    for wrong in ({-1: 1.0}, {3: 100.5}, {3: math.nan}, {"x": 1.0}, {3: None}):
        with pytest.raises(SettingError) as caught:
            validate(part, {"bias": wrong})
        assert caught.value.path.startswith("bias")
    for use in (lambda r: r.check(50), lambda r: r.adjust(some_logits(), HISTORY)):
        with pytest.raises(SettingError, match="no token has the id 50") as caught:
            use(rule("logit_bias", bias={50: 1.0}))
        assert caught.value.path == "logit_bias"
    rule("logit_bias", bias={49: 1.0}).check(50)


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.7}])
def test_rules_equal_those_of_transformers(settings: dict[str, float]) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

    (name, value), logits = next(iter(settings.items())), some_logits(8, 200)
    theirs = {
        "temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper,
        "typical_p": TypicalLogitsWarper,
    }[name](value)  # fmt: skip
    ours = rule(name, **{{"temperature": "temperature", "top_k": "k"}.get(name, "p"): value})
    history = torch.zeros(8, 1, dtype=torch.long)
    np.testing.assert_allclose(ours.adjust(logits, history).softmax(-1), theirs(history, logits).softmax(-1), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_repeated_runs_equals_that_of_transformers(size: int) -> None:
    from transformers import NoRepeatNGramLogitsProcessor

    history = torch.randint(0, 3, (16, 60), generator=torch.Generator().manual_seed(0))
    logits = some_logits(16, 20)
    ours = rule("no_repeat_ngram", size=size).adjust(logits, history)
    assert torch.equal(ours, NoRepeatNGramLogitsProcessor(size)(history, logits.clone()))
    assert (ours == -math.inf).any()
