"""The contract of every stopper, over whatever stands in the folder, and when each of ours stops."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

from chattune.core.part import kind
from chattune.train.stoppers import Stopper

NAMES = kind("stoppers").names()


def stopper(name: str, **settings: Any) -> Stopper:
    return kind("stoppers").load(name)(**settings)


def history(losses: Any) -> list[dict[str, Any]]:
    return [{"step": 10 * (n + 1), "loss": float(loss), "train_loss": float(loss)} for n, loss in enumerate(losses)]


def stopped_at(part: Stopper, losses: Any) -> int | None:
    """Number of the evaluation after which it stops."""
    return next((n for n in range(1, len(losses) + 1) if part.stop(history(losses[:n]))), None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.requirement("R115")
def test_none_stops_while_the_loss_falls_nor_before_there_is_one(name: str) -> None:
    assert stopper(name).stop([]) is None
    assert stopped_at(stopper(name), np.linspace(5, 1, 60)) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.requirement("R115")
def test_each_stops_some_time_after_the_loss_has_turned_and_says_why(name: str) -> None:
    turned = [*np.linspace(5, 2, 10), *np.linspace(2.01, 6, 60)]
    at = stopped_at(stopper(name), turned)
    assert at is not None
    assert at > 10
    reason = stopper(name).stop(history(turned[:at]))
    assert reason
    assert "2.0000" in reason  # the best loss


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_a_history_leaves_it_as_it_is_and_gives_the_same_answer_again(name: str) -> None:
    seen = history([3, 2, 2.5, 2.6, 2.7, 2.8, 2.9])
    kept = copy.deepcopy(seen)
    part = stopper(name)
    assert part.stop(seen) == part.stop(seen)
    assert seen == kept


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_never_the_best(name: str, loss: float) -> None:
    assert stopper(name).stop(history([3, 2, loss, 1.9])) is None
    assert stopper(name).stop(history([loss])) is None


@pytest.mark.requirement("R115")
def test_patience_counts_evaluations_since_the_best() -> None:
    losses = [3, 2, 2.5, 2.4, 2.3, 1.9, 2, 2, 2]
    assert stopped_at(stopper("patience", patience=3), losses) == 5
    assert stopped_at(stopper("patience", patience=4), losses) is None
    assert stopped_at(stopper("patience", patience=3), [3, 2, 2.5, 2.4, 1.9, 2, 2, 2]) == 8


@pytest.mark.requirement("R115")
def test_patience_takes_only_falls_larger_than_min_delta_for_improvements() -> None:
    slow = [2 - 0.001 * n for n in range(20)]
    assert stopped_at(stopper("patience", patience=4), slow) is None
    assert stopped_at(stopper("patience", patience=4, min_delta=0.01), slow) == 5


@pytest.mark.requirement("R115")
def test_generalization_loss_is_percent_above_the_lowest() -> None:
    part = stopper("generalization_loss", limit=5.0)
    assert part.stop(history([4, 2, 2.0999])) is None
    assert part.stop(history([4, 2, 2.1001])) is not None
    assert part.stop(history([4, 2, 3, 2.05])) is None  # only where it stands now


@pytest.mark.requirement("R116")
def test_stopping_at_the_first_rise_of_a_noisy_curve_stops_too_early() -> None:
    """A curve that falls for 40 evaluations and then rises, with noise as large as ten steps of its fall."""
    trend = np.concatenate([np.linspace(4, 2, 40), np.linspace(2, 3, 40)])
    naive, patient, at_best = [], [], []
    for seed in range(20):
        losses = trend + np.random.default_rng(seed).normal(0, 0.05 / 2, 80)
        first, later = stopped_at(stopper("patience", patience=1), losses), stopped_at(stopper("patience", patience=8), losses)
        assert first is not None
        assert later is not None
        naive.append(trend[first - 1])
        patient.append(min(trend[:later]))  # the best checkpoint is kept
        at_best.append(later >= 40)
    assert np.mean(naive) > 3.0  # in the middle of its fall
    assert np.mean(patient) < 2.02
    assert all(at_best)
