"""A constant share lost each period."""

from __future__ import annotations

from chattune.core.part import setting
from chattune.train.schedules import Schedule


class Exponential(Schedule):
    """Multiply the rate by β each decay period: α₀βᵗ.

    Helps when: a smooth fall over some orders of magnitude is wanted.   Hurts when: periods are counted in steps by mistake:
    0.96 a step is nothing left after 200.   Cost: none.   Start with: β 0.96 over 100 periods, which ends near 0.017.
    Source: the usual staircase without its stairs; β = 0.96 with t in decay periods or epochs, never in steps (E8).
    """

    beta: float = setting(0.96, "factor of one period", above=0.0, high=1.0, search=(0.9, 0.99))
    periods: float = setting(100.0, "decay periods in the whole run; t = step · periods / total", above=0.0)

    def factor(self, step: int, total: int) -> float:
        return float(self.beta ** (step * self.periods / total))
