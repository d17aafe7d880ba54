"""Up, level, and down only at the end."""

from __future__ import annotations

import math
from typing import Literal

from chattune.core.part import setting
from chattune.train.schedules import Schedule
from chattune.train.schedules._curve import rise, travelled, warmup_steps


class WarmupStableDecay(Schedule):
    """Warm up, stay at the peak for most of the run, then decay to the floor in the last part.

    Helps when: one long run should be cut at several lengths, or the data of the last part is better.   Hurts when: the run is
    judged before its decay, where the loss still stands above that of a cosine.
    Cost: none.   Start with: decay over the last 0.2 to 0.4, more in short runs.
    Source: Hu et al. 2024 (MiniCPM), arXiv:2404.06395; 1 − √t: Hägele et al. 2024, arXiv:2405.18392.
    """

    warmup: float = setting(0.02, "share of all steps in which the rate rises linearly", low=0.0, below=1.0, search=(0.0, 0.1))
    decay: float = setting(0.4, "share of all steps in which the rate falls, at the end", low=0.0, high=1.0, search=(0.1, 0.7))
    shape: Literal["linear", "one_minus_sqrt"] = setting("linear", "how it falls: 1 − t, or 1 − √t (faster at first)")
    floor: float = setting(0.0, "factor at the end", low=0.0, high=1.0)

    def factor(self, step: int, total: int) -> float:
        warmup = warmup_steps(self.warmup, total)
        start = max(warmup, total - round(self.decay * total))
        if step < start:
            return rise(step, warmup)
        t = travelled(step, start, total)
        return self.floor + (1 - self.floor) * (1 - (math.sqrt(t) if self.shape == "one_minus_sqrt" else t))
