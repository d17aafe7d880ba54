"""An exponential written with its rate."""

from __future__ import annotations

import math

from chattune.core.part import setting
from chattune.train.schedules import Schedule


class NaturalExponential(Schedule):
    """Let the rate fall as e^(−βt), where t counts decay periods.

    Helps when: a decay constant is known, say from another system.   Hurts when: β = 0.96 is copied from the exponential form:
    the rate is gone after five periods (E8).   Cost: none.   Start with: β 0.04 over 100 periods (0.96 a period).
    Source: α₀e^(−βt); equals exponential with e^(−β) for its β.
    """

    beta: float = setting(0.04, "rate of decay, per period", above=0.0, high=100.0, log=True, search=(0.01, 0.1))
    periods: float = setting(100.0, "decay periods in the whole run; t = step · periods / total", above=0.0)

    def factor(self, step: int, total: int) -> float:
        return math.exp(-self.beta * step * self.periods / total)
