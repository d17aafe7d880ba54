"""One over a straight line."""

from __future__ import annotations

from chattune.core.part import setting
from chattune.train.schedules import Schedule


class InverseTime(Schedule):
    """Divide the peak rate by 1 + βt, where t counts decay periods.

    Helps when: convex problems with noisy gradients, where the 1/t of stochastic approximation is right.   Hurts when: deep
    networks on a fixed budget: it falls early and then hardly.   Cost: none.   Start with: β 0.1 over 100 periods.
    Source: Robbins & Monro 1951; α₀/(1 + βt). β = 0.96, which fits the exponential form, would halve the rate after one period
    (E8).
    """

    beta: float = setting(0.1, "how fast the rate falls, per period", above=0.0, high=100.0, log=True, search=(0.01, 1.0))
    periods: float = setting(100.0, "decay periods in the whole run; t = step · periods / total", above=0.0)

    def factor(self, step: int, total: int) -> float:
        return 1 / (1 + self.beta * step * self.periods / total)
