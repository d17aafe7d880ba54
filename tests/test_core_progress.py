"""Talk on stderr: plain lines in a pipe, an honest estimate of what is left; and randomness as a function of its path."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from chattune.core.progress import Progress, duration
from chattune.core.seeds import derived, generator

SCRIPT = """
import sys, time
from chattune.core.progress import progress, talk
talk().quiet = "quiet" in sys.argv
with progress("train", 4) as bar:
    bar.seconds = 0.0
    for step in range(1, 5):
        time.sleep(0.02)
        bar.update(step, loss="2.5", nothing=None)
    bar.note("a [bold]line[/bold] that stays")
print("result")
"""


@pytest.mark.requirement("U5")
def test_a_pipe_gets_plain_lines_on_stderr_and_stdout_holds_the_result_only() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("train  step 1/4  loss 2.5  left 0:00")
    assert "a [bold]line[/bold] that stays" in lines  # markup in somebody's text is text
    assert "\x1b" not in done.stderr
    assert "nothing" not in done.stderr


def test_quiet_silences_all_talk() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, "quiet"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\n", "")


@pytest.mark.requirement("U5")
def test_the_estimate_follows_the_rate_of_this_session_also_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("chattune.core.progress.time.monotonic", lambda: clock[0])
    bar = Progress("train", 100, start=60, seconds=1e9)
    assert bar.seconds_left() is None
    for done in range(61, 71):
        clock[0] += 2.0
        bar.update(done)
    assert bar.seconds_left() == pytest.approx(60.0)  # 30 steps at 2 s each: what was done before the resume does not count


def test_durations_are_said_for_people() -> None:
    assert [duration(s) for s in (0, 59.6, 75, 3700)] == ["0:00", "1:00", "1:15", "1:01:40"]


def test_streams_are_repeatable_and_independent_of_one_another() -> None:
    assert derived(1, "step", 480) == derived(1, "step", 480)
    paths = [(0,), (1,), (1, "step"), (1, "step", 1), (1, "step", 11), (1, "step1", 1), (1, 1, "step"), (11, "step")]
    assert len({derived(*path) for path in paths}) == len(paths)
    assert all(0 <= derived(*path) < 2**63 for path in paths)
    a, b = (generator(3, "split", part).standard_normal(4000) for part in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06  # four standard errors of 4000 independent pairs
    assert np.array_equal(a, generator(3, "split", 0).standard_normal(4000))
