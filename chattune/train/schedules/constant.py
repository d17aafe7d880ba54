"""The peak rate throughout."""

from __future__ import annotations

from chattune.core.part import setting
from chattune.train.schedules import Schedule
from chattune.train.schedules._curve import rise, warmup_steps


class Constant(Schedule):
    """Keep the learning rate at its peak, after an optional warmup.

    Helps when: the end of training is not known, or the rate itself is under study.   Hurts when: the last percents of loss
    matter, which only a decay gives.   Cost: none.   Start with: warmup 0.
    Source: the plain form of gradient descent; warmup after Goyal et al. 2017, arXiv:1706.02677.
    """

    warmup: float = setting(0.0, "share of all steps in which the rate rises linearly", low=0.0, below=1.0)

    def factor(self, step: int, total: int) -> float:
        return rise(step, warmup_steps(self.warmup, total))
