"""Being asked to stop: the first SIGINT or SIGTERM is noted for the loop to see, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from chattune.core.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether a signal came. The loop asks `requested` after each step, saves, and raises `stopped`."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._heard = False

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def stopped(self, step: int, run: str, *, saved: bool = True) -> Interrupted:
        """The error to raise once state is saved: exit code 130 or 143, and how to go on."""
        assert self.signal is not None
        done = f"saved step {step}" if saved else f"stopped at step {step}; nothing new was saved"
        return Interrupted(self.signal, f"{done}; continue with `chattune resume {run}`", value=step)

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """The handler. A second signal leaves at once: a checkpoint half-written is a leftover, never a wrong checkpoint."""
        if self.signal is not None and not self._heard:
            os._exit(128 + number)
        self.signal, self._heard = self.signal or number, False

    def hear(self, number: int) -> None:
        """A signal came to another process that trains with this one; the same may still be on its way to this one."""
        if self.signal is None:
            self.signal, self._heard = number, True


@contextlib.contextmanager
def listening() -> Iterator[Interrupt]:
    """``with listening() as interrupt``: both signals go to it, and to the handlers from before afterwards.

    Outside the main thread, where Python takes no handlers, it stays silent.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt.receive) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
