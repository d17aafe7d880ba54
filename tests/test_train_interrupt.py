"""Signals: the first is noted, the second ends the process, and the handlers from before come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from chattune.core.errors import Interrupted
from chattune.train.interrupt import listening


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.requirement("C5", "I33")
def test_the_first_signal_is_noted_and_becomes_the_exit_code(number: signal.Signals, code: int) -> None:
    with listening() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        for _ in range(100):
            if interrupt.requested:
                break
            time.sleep(0.01)
        assert interrupt.requested
    error = interrupt.stopped(480, "demo")
    assert isinstance(error, Interrupted)
    assert error.exit_code == code
    assert str(error) == "saved step 480; continue with `chattune resume demo`"
    assert "nothing new was saved" in str(interrupt.stopped(480, "demo", saved=False))


@pytest.mark.requirement("I33")
def test_the_handlers_from_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with listening():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_taken_over() -> None:
    seen: list[bool] = []

    def work() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with listening() as interrupt:
            seen.append(signal.getsignal(signal.SIGTERM) is before and not interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.requirement("C5", "I33")
def test_the_second_signal_ends_the_process_at_once(number: signal.Signals, code: int) -> None:
    program = (
        "import time\nfrom chattune.train.interrupt import listening\n"
        "with listening() as interrupt:\n"
        "    print('ready', flush=True)\n"
        "    while not interrupt.requested: time.sleep(0.01)\n"
        "    print('noted', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.stdout.readline() == "noted\n"
        began = time.monotonic()
        child.send_signal(number)
        assert child.wait(timeout=30) == code
    assert time.monotonic() - began < 10  # of the 60 that it would sleep
