"""Talk: one live line on a terminal, plain lines in a pipe; always on stderr, so that stdout holds results only."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


@functools.cache
def talk() -> Console:
    """The console for everything that is not a result. ``talk().quiet = True`` silences it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


class Progress:
    """Progress of one long piece of work, counted from `start` to `total`.

    `update` may be called as often as one likes; a pipe gets a line at most every `seconds` and one at the end.
    """

    def __init__(self, label: str, total: int, *, start: int = 0, unit: str = "step", seconds: float = 10.0) -> None:
        self.label, self.total, self.unit, self.seconds = label, total, unit, seconds
        self.start, self.done, self.facts = start, start, ""
        self.began = self.spoken = time.monotonic()
        self._live: RichProgress | None = None
        self._task: TaskID | None = None
        self._said = -1

    def open(self) -> None:
        if talk().is_terminal and not talk().quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._live = RichProgress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
                TextColumn("left"), TimeRemainingColumn(compact=True), console=talk(), transient=True,
            )  # fmt: skip
            self._live.start()
            self._task = self._live.add_task(self.label, total=self.total, completed=self.start, facts="")

    def update(self, done: int, **facts: object) -> None:
        """Say that `done` of the total are done; `facts` are printed in the order given (``loss=2.31``)."""
        self.done = done
        self.facts = "  ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items() if value is not None)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, facts=self.facts)
        elif time.monotonic() - self.spoken >= self.seconds:
            self._say()

    def seconds_left(self) -> float | None:
        """Estimate from the rate so far; none before the first piece is done."""
        if self.done <= self.start:
            return None
        return (time.monotonic() - self.began) / (self.done - self.start) * (self.total - self.done)

    def note(self, text: str) -> None:
        """A line that stays."""
        talk().print(text, markup=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self.done > self.start and self.done != self._said:
            self._say()

    def _say(self) -> None:
        self.spoken, self._said = time.monotonic(), self.done
        left = self.seconds_left()
        eta = f"  left {duration(left)}" if left and self.done < self.total else ""
        talk().print(f"{self.label}  {self.unit} {self.done}/{self.total}  {self.facts}{eta}", markup=False)


@contextlib.contextmanager
def progress(label: str, total: int, *, start: int = 0, unit: str = "step") -> Iterator[Progress]:
    """``with progress("train", 400) as bar: bar.update(1, loss="4.2")``."""
    bar = Progress(label, total, start=start, unit=unit)
    bar.open()
    try:
        yield bar
    finally:
        bar.close()


def duration(seconds: float) -> str:
    """``75`` → ``1:15``; ``3700`` → ``1:01:40``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
