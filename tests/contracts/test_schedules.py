"""The contract of every schedule, over whatever stands in the folder, and the closed form of each that we ship."""

from __future__ import annotations

import math
from typing import Any

import pytest

from chattune.core.part import kind
from chattune.train.schedules import Schedule

NAMES = kind("schedules").names()
TOTALS = (1, 2, 3, 10, 400, 1001)


def schedule(name: str, **settings: Any) -> Schedule:
    return kind("schedules").load(name)(**settings)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.requirement("R097")
def test_factors_are_finite_never_negative_and_at_most_the_peak(name: str, total: int) -> None:
    factors = [schedule(name).factor(step, total) for step in range(total)]
    assert all(math.isfinite(f) and 0 <= f <= 1 for f in factors)
    assert max(factors) > 0


@pytest.mark.parametrize("name", [n for n in NAMES if "warmup" in kind("schedules").load(n).model_fields])
@pytest.mark.requirement("R097")
def test_warmup_rises_in_equal_steps_to_the_peak_and_then_never_rises_again(name: str) -> None:
    factors = [schedule(name, warmup=0.25).factor(step, 40) for step in range(40)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[9] == 1.0
    assert factors[9:] == sorted(factors[9:], reverse=True)


@pytest.mark.parametrize("name", [n for n in NAMES if "warmup" in kind("schedules").load(n).model_fields])
def test_without_warmup_the_first_step_is_taken_at_the_peak(name: str) -> None:
    assert schedule(name, warmup=0.0).factor(0, 40) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_depends_on_step_and_total_only(name: str) -> None:
    part = schedule(name)
    forwards = [part.factor(step, 50) for step in range(50)]
    assert forwards == [schedule(name).factor(step, 50) for step in reversed(range(50))][::-1]


def test_cosine_has_its_closed_form() -> None:
    part = schedule("cosine", warmup=0.1, floor=0.2)
    for step in range(10, 100):
        assert part.factor(step, 100) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90)), rel=1e-12)
    assert part.factor(55, 100) == pytest.approx(0.6)  # half-way between peak and floor


def test_linear_has_its_closed_form() -> None:
    part = schedule("linear", warmup=0.0, floor=0.0)
    assert [part.factor(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert schedule("linear", warmup=0.0, floor=0.5).factor(2, 4) == 0.75


def test_warmup_stable_decay_is_level_and_then_falls_to_zero() -> None:
    part = schedule("warmup_stable_decay", warmup=0.1, decay=0.5)
    factors = [part.factor(step, 20) for step in range(21)]
    assert factors[1:11] == [1.0] * 10
    assert factors[10:] == pytest.approx([1 - (step - 10) / 10 for step in range(10, 21)])
    assert factors[20] == 0.0
    root = schedule("warmup_stable_decay", warmup=0.1, decay=0.5, shape="one_minus_sqrt")
    assert root.factor(15, 20) == pytest.approx(1 - math.sqrt(0.5))


def test_a_decay_longer_than_the_run_begins_after_the_warmup() -> None:
    part = schedule("warmup_stable_decay", warmup=0.5, decay=1.0)
    assert [part.factor(step, 4) for step in range(5)] == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_constant_stays() -> None:
    assert {schedule("constant").factor(step, 7) for step in range(7)} == {1.0}


@pytest.mark.requirement("R098")
@pytest.mark.parametrize("t", [0, 1, 7, 99])
def test_inverse_time_exponential_and_natural_exponential_have_their_closed_forms(t: int) -> None:
    assert schedule("inverse_time", beta=0.96).factor(t, 100) == pytest.approx(1 / (1 + 0.96 * t), rel=1e-12)
    assert schedule("exponential", beta=0.96).factor(t, 100) == pytest.approx(0.96**t, rel=1e-12)
    assert schedule("natural_exponential", beta=0.96).factor(t, 100) == pytest.approx(math.exp(-0.96 * t), rel=1e-12)


@pytest.mark.requirement("R098", "E8")
def test_beta_of_0_96_fits_the_exponential_form_only() -> None:
    """In the two others it leaves nothing after a few periods, so their defaults differ; all count periods, never steps."""
    assert schedule("exponential").factor(50, 100) > 0.1
    assert schedule("natural_exponential", beta=0.96).factor(50, 100) < 1e-20
    assert schedule("inverse_time", beta=0.96).factor(50, 100) < 0.025
    ends = [schedule(name).factor(99, 100) for name in ("inverse_time", "exponential", "natural_exponential")]
    assert all(0.01 < end < 0.2 for end in ends)
    for name in ("inverse_time", "exponential", "natural_exponential"):
        assert schedule(name).factor(5_000, 10_000) == pytest.approx(schedule(name).factor(50, 100))
