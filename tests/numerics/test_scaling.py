"""Scaling laws are told from noise within their intervals, predict what they have not seen, and are refused otherwise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from chattune.core.errors import DataError
from chattune.evaluate.scaling import Cells, Law, Scaling, _Problem, effective_data, fit, held_out, scaling

CURVE = Law(2.0, 900.0, 0.5)
GRID = Law(1.8, 400.0, 0.45, 60.0, 0.4)
AMOUNTS = 500_000 / 2.0 ** np.arange(6)
SIZES, DATA = (values.ravel() for values in np.meshgrid([5e4, 1.5e5, 5e5, 1.5e6], [3e4, 1e5, 3e5, 1e6]))


def curve(noise: float = 0.0, seed: int = 0, seeds: int = 2, law: Law = CURVE) -> Cells:
    data = np.repeat(AMOUNTS, seeds)
    return Cells(data, law.loss(data) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(data))))


def grid(noise: float = 0.0, seed: int = 0, law: Law = GRID) -> Cells:
    data, sizes = np.tile(DATA, 2), np.tile(SIZES, 2)
    return Cells(data, law.loss(data, sizes) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(data))), sizes)


@pytest.mark.requirement("R022")
@pytest.mark.parametrize(("cells", "law"), [(curve(), CURVE), (grid(), GRID)], ids=["curve", "grid"])
def test_a_law_without_noise_is_found_to_four_digits(cells: Cells, law: Law) -> None:
    found = fit(cells)
    for name in ("floor", "data_factor", "data_exponent", "size_factor", "size_exponent"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-4), name
    assert found.loss(cells.data, cells.parameters) == pytest.approx(cells.losses, rel=1e-7)


@pytest.mark.requirement("R022")
def test_the_intervals_of_a_curve_hold_the_truth_about_as_often_as_they_say() -> None:
    """40 repetitions with noise of 0.4 %: 34 and 35 held when this was written: the bootstrap is a little too narrow.

    Below 32 (a chance of 1 % where 9 in 10 hold) an interval would mislead."""
    statistics = {"exponent": lambda law: law.data_exponent, "elasticity": lambda law: law.data_elasticity(5e5)}
    held = dict.fromkeys(statistics, 0)
    for seed in range(40):
        found = scaling(curve(0.004, seed, seeds=3), seed=seed, resamples=80)
        for name, statistic in statistics.items():
            estimate = found.estimate(statistic)
            assert estimate.low < estimate.high
            held[name] += estimate.low <= statistic(CURVE) <= estimate.high
    assert min(held.values()) >= 32, held


@pytest.mark.requirement("R022")
def test_the_intervals_of_a_grid_hold_the_truth_about_as_often_as_they_say() -> None:
    statistics = {
        "b": lambda law: law.data_exponent, "a": lambda law: law.size_exponent, "data": lambda law: law.data_elasticity(1e6),
        "size": lambda law: law.size_elasticity(1.5e6),
    }  # fmt: skip
    held = dict.fromkeys(statistics, 0)
    for seed in range(12):
        found = scaling(grid(0.004, seed), seed=seed, resamples=60)
        for name, statistic in statistics.items():
            estimate = found.estimate(statistic)
            held[name] += estimate.low <= statistic(GRID) <= estimate.high
    assert min(held.values()) >= 8, held  # of 12: at 90 % a chance of 0.4 %


@pytest.mark.requirement("R022")
def test_the_largest_cell_is_predicted_without_having_been_seen() -> None:
    cells = curve(0.003, 1)
    found = held_out(cells)
    rest = cells.data < cells.data.max()
    again = fit(Cells(cells.data[rest], cells.losses[rest]))
    assert found.predicted == pytest.approx(again.loss(cells.data.max())) and found.data == cells.data.max()
    assert found.measured == pytest.approx(cells.losses[~rest].mean())
    assert found.error == pytest.approx(found.predicted / found.measured - 1) and abs(found.error) < 0.01 and found.trusted
    assert found.unchanged_error > 3 * abs(found.error), "more than the guess that nothing changes"
    changed = held_out(Cells(cells.data, np.where(rest, cells.losses, 7.0)))
    assert changed.predicted == found.predicted and not changed.trusted


@pytest.mark.requirement("R022")
def test_a_grid_leaves_out_its_largest_corner_alone() -> None:
    cells = grid()
    assert np.flatnonzero(cells.largest()).tolist() == [15, 31]
    found = held_out(cells)
    assert (found.data, found.parameters) == (1e6, 1.5e6) and abs(found.error) < 1e-5


def test_the_largest_cell_may_be_named_where_its_seeds_hold_unlike_amounts() -> None:
    cells = curve(0.003, 6)
    data = cells.data * np.tile([0.9, 1.1], 6)
    moved = Cells(data, CURVE.loss(data))
    last = cells.data == cells.data.max()
    assert np.flatnonzero(moved.largest()).tolist() == [1] and np.flatnonzero(last).tolist() == [0, 1]
    found = held_out(moved, last)
    assert found.data == pytest.approx(5e5) and found.measured == pytest.approx(moved.losses[:2].mean()) and abs(found.error) < 1e-5
    assert scaling(moved, last=last, resamples=5).held_out == found


def test_the_derivatives_equal_finite_differences() -> None:
    for cells in (curve(0.01), grid(0.01)):
        problem = _Problem.of(cells, 1e-3)
        place = problem.place(GRID if cells.parameters is not None else CURVE)
        step = 1e-6 * np.eye(len(place))
        numeric = np.stack([(problem.residuals(place + one) - problem.residuals(place - one)) / 2e-6 for one in step], axis=1)
        assert problem.slopes(place) == pytest.approx(numeric, abs=1e-8)
        back = problem.law(place)
        assert back.data_factor == pytest.approx((GRID if cells.parameters is not None else CURVE).data_factor)


def test_one_training_that_went_wrong_bends_the_law_little() -> None:
    cells = curve(0.001, 2, seeds=3)
    spoilt = cells.losses.copy()
    spoilt[4] *= 1.2
    robust, square = (fit(Cells(cells.data, spoilt), huber=huber) for huber in (1e-2, 10.0))
    clean = fit(cells)
    away = [abs(law.loss(AMOUNTS) / clean.loss(AMOUNTS) - 1).max() for law in (robust, square)]
    assert away[0] < 0.01 < 0.02 < away[1]


def test_elasticities_are_the_slopes_of_the_law() -> None:
    n, size, step = 2e5, 3e5, 1e-6
    down, up = math.exp(-step), math.exp(step)
    slope = (GRID.loss(n * down, size) - GRID.loss(n * up, size)) / (2 * step)
    assert GRID.data_elasticity(n) == pytest.approx(slope, rel=1e-6)
    slope = (GRID.loss(n, size * down) - GRID.loss(n, size * up)) / (2 * step)
    assert GRID.size_elasticity(size) == pytest.approx(slope, rel=1e-6)


def test_a_lever_is_worth_the_data_at_which_the_base_is_as_good() -> None:
    found = scaling(curve(0.002, 3), resamples=60)
    worth = found.equivalent_data(CURVE.loss(200_000))
    assert worth.low < 200_000 < worth.high and worth.outside is None
    assert found.law.loss(worth.value) == pytest.approx(CURVE.loss(200_000))
    beyond = found.equivalent_data(CURVE.loss(5e6))
    assert beyond.outside == "above" and "above the measured range" in str(beyond)
    assert found.equivalent_data(CURVE.loss(1e3)).outside == "below"
    never = found.equivalent_data(0.5 * found.law.floor)
    assert never.value == math.inf and never.outside == "above"
    for loss in (math.nan, -1.0):
        with pytest.raises(DataError, match="loss: is"):
            found.equivalent_data(loss)


def limited(law: Law, noise: float = 0.002) -> Scaling:
    return scaling(grid(noise, 4, law), resamples=60)


def test_the_limit_is_what_would_save_more_and_none_where_the_check_failed() -> None:
    data = limited(Law(1.8, 900.0, 0.45, 5.0, 0.4))
    assert data.limit(1e6, 1.5e6) == "data" and "data is the limit" in data.advice(1e6, 1.5e6)
    size = limited(Law(1.8, 30.0, 0.45, 300.0, 0.4))
    assert size.limit(1e6, 1.5e6) == "size" and "capacity is the limit" in size.advice(1e6, 1.5e6)
    cells = grid(0.002, 4)
    losses = np.where(cells.largest(), 1.15 * cells.losses, cells.losses)
    broken = scaling(Cells(cells.data, losses, cells.parameters), resamples=20)
    assert broken.limit(1e6, 1.5e6) is None and broken.advice(1e6, 1.5e6).startswith("No verdict")


def test_the_recommended_size_is_the_best_division_of_the_same_computing() -> None:
    size = GRID.size_for(3e5)
    work = size * 3e5
    sizes = size * np.exp(np.linspace(-2, 2, 4001))
    assert sizes[np.argmin(GRID.loss(work / sizes, sizes))] == pytest.approx(size, rel=2e-3)
    assert GRID.size_for(6e5) > size, "more data suits a larger model"
    found = limited(GRID).recommended_size(3e5)
    assert found.low < size < found.high
    with pytest.raises(DataError, match="one size"):
        scaling(curve(0.002), resamples=20).recommended_size(1e5)


def test_repeated_data_is_worth_less_each_time_and_never_more_than_a_bound() -> None:
    assert effective_data(1000.0, 1000.0) == 1000.0
    assert effective_data(1000.0, 400.0) == 400.0, "what was not read is worth nothing"
    assert effective_data(1000.0, 1e9) == pytest.approx(1000 * (1 + 15.387756))
    passes = np.arange(1, 60)
    worth = effective_data(1000.0, 1000.0 * passes, repeats=5.0)
    assert worth == pytest.approx(1000 + 1000 * 5 * (1 - np.exp(-(passes - 1) / 5)))
    gains = np.diff(worth)
    assert (gains > 0).all() and (np.diff(gains) < 0).all() and gains[0] < 1000
    assert effective_data(1000.0, 4000.0) > 0.9 * 4000, "four passes are nearly as good as fresh text (Muennighoff et al.)"
    for bad in ((0.0, 1.0), (1.0, math.inf), (1.0, -1.0)):
        with pytest.raises(DataError, match="not a number of tokens"):
            effective_data(*bad)


def test_test_conversations_add_their_own_uncertainty_and_the_seed_repeats_it() -> None:
    cells = curve(0.001, 5)
    random = np.random.default_rng(0)
    tokens = random.integers(20, 200, 60).astype(float)
    hardness = np.exp(0.3 * random.standard_normal(60))  # of a conversation, the same for every model
    nll = tokens[:, None] * hardness[:, None] * cells.losses
    nll *= cells.losses * tokens.sum() / nll.sum(axis=0)
    rows = np.column_stack((nll, tokens))
    found = [scaling(cells, conversations=held, seed=1, resamples=60) for held in (None, rows, rows)]
    floors = [each.estimate(lambda law: law.loss(5e5)) for each in found]
    assert floors[1].high - floors[1].low > 3 * (floors[0].high - floors[0].low)
    assert floors[1] == floors[2]
    for bad in (rows[:, :-1], 2 * rows * np.r_[np.ones(len(cells)), 0.7]):
        with pytest.raises(DataError, match="conversations"):
            scaling(cells, conversations=bad, resamples=5)


@pytest.mark.parametrize(
    ("changed", "path", "says"),
    [
        ({"losses": [3.0, 2.8, math.nan, 2.6]}, "losses[2]", "is nan"),
        ({"losses": [3.0, 2.8, -2.7, 2.6]}, "losses[2]", "is -2.7"),
        ({"losses": [3.0, math.inf, 2.7, 2.6]}, "losses[1]", "is inf"),
        ({"data": [0.0, 2e4, 4e4, 8e4]}, "data[0]", "is 0"),
        ({"losses": [3.0, 2.8, 2.7]}, "losses", "shape"),
        ({"losses": [2.6, 2.7, 2.8, 3.0]}, "losses", "does not fall with more data: 2.6000 with the least, 3.0000 with the most"),
        ({"data": [1e4, 1e4, 2e4, 2e4]}, "data", "2 different amounts of data"),
        ({"parameters": [1e5, 2e5, 1e5, 2e5]}, "parameters", "2 different sizes"),
        ({"parameters": [1e5, 2e5, 4e5, 8e5]}, "losses", "4 cells cannot tell 5 unknowns"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_the_place(changed: dict[str, Any], path: str, says: str) -> None:
    values = {"data": [1e4, 2e4, 4e4, 8e4], "losses": [3.0, 2.8, 2.7, 2.6], **changed}
    with pytest.raises(DataError) as refused:
        fit(Cells(**values))
    assert refused.value.path == path and says in str(refused.value) and refused.value.rule and "\n" not in str(refused.value)


def test_the_check_needs_one_more_amount_of_data_than_the_curve() -> None:
    cells = Cells(np.array([1e4, 2e4, 4e4]), np.array([3.0, 2.8, 2.7]))
    assert fit(cells).loss(4e4) == pytest.approx(2.7, rel=1e-3)
    with pytest.raises(DataError, match="2 different amounts of data"):
        scaling(cells)
