"""Intervals: what they promise, and over what."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chattune.evaluate import bootstrap


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    random = np.random.default_rng(0)
    values = random.normal(3, 2, size=400)
    value, low, high = bootstrap.mean([str(n) for n in range(400)], values.tolist(), seed=0)
    error = values.std() / math.sqrt(400)
    assert value == pytest.approx(values.mean())
    assert (value - low, high - value) == pytest.approx((1.96 * error, 1.96 * error), rel=0.15)  # 1000 resamples: 5 % and skew


def test_the_interval_of_a_ratio_equals_scipys_percentile_bootstrap() -> None:
    from scipy import stats

    random = np.random.default_rng(1)
    bottom = random.integers(20, 400, size=150).astype(float)
    top = bottom * random.normal(1.2, 0.3, size=150)
    _, low, high = bootstrap.interval(np.stack((top, bottom), axis=1), bootstrap.ratio, seed=0)
    theirs = stats.bootstrap(
        (top, bottom), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * (theirs.high - theirs.low))  # two finite resamplings


def test_intervals_cover_the_truth_as_often_as_they_promise() -> None:
    random = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        sample = np.stack((random.gamma(2.0, 1.0, size=60), np.ones(60)), axis=1)
        _, low, high = bootstrap.interval(sample, bootstrap.ratio, seed=trial, resamples=400)
        hits += low <= 2.0 <= high
    assert 0.88 <= hits / 200 <= 0.98  # 95 % nominal; percentile intervals of 60 skewed values run a little short


def test_answers_of_one_conversation_are_not_independent_evidence() -> None:
    values = np.repeat(np.random.default_rng(4).normal(size=30), 10)
    alone = bootstrap.mean([str(n) for n in range(300)], values.tolist(), seed=0)
    grouped = bootstrap.mean([str(n // 10) for n in range(300)], values.tolist(), seed=0)
    assert grouped[0] == pytest.approx(alone[0])
    assert grouped[2] - grouped[1] > 2.5 * (alone[2] - alone[1])  # √10 in theory


def test_the_same_seed_gives_the_same_interval_and_large_corpora_fit_in_memory() -> None:
    sums = np.random.default_rng(5).random((20_000, 2)) + 1
    once, again = (bootstrap.interval(sums, bootstrap.ratio, seed=9, resamples=500) for _ in range(2))
    assert once == again
    assert bootstrap.interval(sums, bootstrap.ratio, seed=10, resamples=500)[1:] != once[1:]
