"""Schedules: the learning rate over time, as a factor of its peak."""

from __future__ import annotations

from chattune.core.part import Part


class Schedule(Part):
    """A curve. Steps count from 0; `total` is the planned number of steps."""

    def factor(self, step: int, total: int) -> float:
        """Share of the peak rate for update `step` in ``0 … total - 1``; finite and never negative."""
        raise NotImplementedError
