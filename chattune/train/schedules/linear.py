"""A straight line from the peak to a floor."""

from __future__ import annotations

from chattune.core.part import setting
from chattune.train.schedules import Schedule
from chattune.train.schedules._curve import rise, travelled, warmup_steps


class Linear(Schedule):
    """Warm up linearly, then fall in a straight line to a floor.

    Helps when: the number of steps is known; fine-tuning, and long runs that should end at rate 0.   Hurts when: training may
    go on after the planned end.   Cost: none.   Start with: warmup 0.02, floor 0.
    Source: Bergsma et al. 2025, arXiv:2502.15938 (straight to zero beats a cosine with a floor of 0.1).
    """

    warmup: float = setting(0.02, "share of all steps in which the rate rises linearly", low=0.0, below=1.0, search=(0.0, 0.1))
    floor: float = setting(0.0, "factor at the end", low=0.0, high=1.0, search=(0.0, 0.1))

    def factor(self, step: int, total: int) -> float:
        warmup = warmup_steps(self.warmup, total)
        if step < warmup:
            return rise(step, warmup)
        return self.floor + (1 - self.floor) * (1 - travelled(step, warmup, total))
