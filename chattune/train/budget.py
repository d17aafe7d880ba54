"""How far a run is: counted in steps, or read from the clock."""

from __future__ import annotations

from dataclasses import dataclass

from chattune.train.schedules import Schedule

_TICKS = 100_000  # resolution of a schedule that follows the clock


@dataclass(frozen=True)
class Budget:
    """Either `steps` or `seconds` is given."""

    steps: int | None = None
    seconds: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done after `step` steps and `seconds` of wall time, up to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)

    def factor(self, schedule: Schedule, step: int, seconds: float) -> float:
        """The schedule's factor for the step that comes next."""
        if self.steps is not None:
            return schedule.factor(step, self.steps)
        # One step ahead of the clock would be a guess; by the clock, the first steps use the middle of the first tick.
        return schedule.factor(min(_TICKS - 1, int(self.progress(step, seconds) * _TICKS) + _TICKS // 5000), _TICKS)

    def total(self, step: int, seconds: float) -> int:
        """Planned steps; by the clock: those that the speed so far leads to."""
        if self.steps is not None:
            return self.steps
        return max(step, round(step / max(self.progress(step, seconds), 1e-9))) if step else 0
