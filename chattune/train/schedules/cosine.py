"""Half a cosine from the peak to a floor."""

from __future__ import annotations

import math

from chattune.core.part import setting
from chattune.train.schedules import Schedule
from chattune.train.schedules._curve import rise, travelled, warmup_steps


class Cosine(Schedule):
    """Warm up linearly, then follow half a cosine from the peak down to a floor.

    Helps when: the number of steps is known; the usual choice for language models.   Hurts when: training may go on after the
    planned end, or stops long before it: the rate is then wrong throughout (see warmup_stable_decay).
    Cost: none.   Start with: warmup 0.02, floor 0.1.
    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts. The floor would be reached at step `total`.
    """

    warmup: float = setting(0.02, "share of all steps in which the rate rises linearly", low=0.0, below=1.0, search=(0.0, 0.1))
    floor: float = setting(0.1, "factor at the end", low=0.0, high=1.0, search=(0.0, 0.1))

    def factor(self, step: int, total: int) -> float:
        warmup = warmup_steps(self.warmup, total)
        if step < warmup:
            return rise(step, warmup)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * travelled(step, warmup, total))) / 2
