"""One of several processes is killed, the command is stopped, a process cannot go on: the whole job ends, says who and why, resumes.

The smoke version runs always; ``FULL=1`` kills at 20 points, and lets torchrun restart.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from material import TINY, planned_again, unfinish

import chattune
from chattune.core import files
from chattune.core.errors import ChattuneError, DataError, DivergenceError, Interrupted, RankError
from chattune.core.processes import ERROR_FILE, tell_launcher
from chattune.train import state as train_state
from chattune.train.launch import _require_success

FULL = os.environ.get("FULL") == "1"
pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600 if FULL else 600)]
OVERRIDES = [*TINY, "train.steps=40", "train.save_steps=1", "train.optimizer=adamw", "train.probe_dialogs=0", "train.processes=2"]
RUN = [sys.executable, "-m", "chattune", "resume"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(chattune.__file__).parents[1])}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A train run on two processes that was finished once and is only planned again, and the digest of the weights it came to."""
    return planned_again(tmp_path_factory.mktemp("ranks"), OVERRIDES)


class Job:
    """``chattune resume RUN`` with its workers, or the same under torchrun."""

    def __init__(self, run: Path, *launcher: str) -> None:
        command = [*(launcher or RUN[:-1]), "resume", str(run), "--home", str(run.parent)]
        self.run, self.began = run, newest(run)
        self.process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def worker(self, rank: int) -> int:
        """The process of that rank."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                try:
                    known = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
                if f"RANK={rank}".encode() in known:
                    return int(child)
            time.sleep(0.01)
        raise AssertionError("no worker of that rank")

    def await_steps(self, count: int) -> bool:
        """Wait until `count` checkpoints more than at the beginning were saved; false where the job ended before."""
        while newest(self.run) < self.began + count:
            if self.process.poll() is not None:
                return False
            time.sleep(0.005)
        return True

    def ended(self) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        try:
            said = self.process.communicate(timeout=300)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()  # its workers end with it
            raise
        return self.process.returncode, said


def newest(run: Path) -> int:
    return max(train_state.steps(run / "state"), default=0)


@pytest.mark.long
@pytest.mark.requirement("C10", "C5", "C2")
def test_a_killed_process_ends_the_job_is_named_and_the_resumed_job_comes_to_the_same_weights(planned: tuple[Path, str]) -> None:
    run, reference = planned
    chance, slowest, kills, named = random.Random(10), 0.0, 0, 0
    wanted = 20 if FULL else 2
    while kills < wanted:
        job, rank = Job(run), kills % 2
        worker = job.worker(rank)
        if kills < 2 or chance.random() < 0.7:
            alive = job.await_steps(2)
            time.sleep(chance.uniform(0.0, 0.03))
        else:  # somewhere while it starts
            alive = True
            time.sleep(chance.uniform(0.0, 6.0))
        if not alive or job.process.poll() is not None or newest(run) >= 36:
            job.process.kill()
            job.ended()
            unfinish(run)
            continue
        os.kill(worker, signal.SIGKILL)
        began = time.monotonic()
        code, said = job.ended()
        slowest = max(slowest, time.monotonic() - began)
        kills += 1
        assert code == 1, said
        named += f"process {rank} of 2 was ended by SIGKILL" in said
        assert f"continue with `chattune resume {run.name}`" in said
        assert "Traceback" not in said
        for step in train_state.steps(run / "state"):
            train_state.read(run / "state" / f"step-{step:08d}")  # every checkpoint is whole
    stopped = Job(run)
    assert stopped.await_steps(1), stopped.ended()
    stopped.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, said = stopped.ended()
    took = time.monotonic() - began
    assert code == 143, said
    told = re.search(rf"saved step (\d+); continue with `chattune resume {run.name}`", said)
    assert told, said
    assert newest(run) == int(told[1])
    code, said = Job(run).ended()
    assert code == 0, said
    assert files.digest_of(run / "model.safetensors") == reference
    print(
        f"C10: {kills} kills of one of two processes: {named} named, the slowest job ended after {slowest:.1f} s; SIGTERM ended one in "
        f"{took:.1f} s with 143; the resumed job has the uninterrupted one's weights to the bit"
    )
    assert named == kills
    assert slowest <= 30
    assert took <= 10
    unfinish(run)


@pytest.mark.skipif(not FULL, reason="FULL=1: four launches more")
@pytest.mark.requirement("C10")
def test_torchrun_names_the_killed_process_restarts_all_and_they_continue(planned: tuple[Path, str]) -> None:
    run, reference = planned
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = Job(run, *torchrun, "-m", "chattune")
    assert job.await_steps(2), job.ended()
    os.kill(job.worker(1), signal.SIGKILL)
    began = time.monotonic()
    code, said = job.ended()
    assert time.monotonic() - began <= 35  # torchrun's own patience is 30 s
    assert code != 0
    assert re.search(r"rank\s*:\s*1", said), said
    restarted = Job(run, *torchrun, "--max-restarts", "2", "-m", "chattune")
    assert restarted.await_steps(2), restarted.ended()
    os.kill(restarted.worker(1), signal.SIGKILL)
    code, said = restarted.ended()
    assert code == 0, said
    assert "resuming after step" in said
    assert files.digest_of(run / "model.safetensors") == reference
    unfinish(run)
    one = Job(run, *torchrun[:-1], "1", "-m", "chattune")  # torchrun's number of processes wins over the recipe's
    code, said = one.ended()
    assert code == 0, said
    assert "2 processes" not in said
    unfinish(run)


def left(folder: Path, monkeypatch: pytest.MonkeyPatch, **errors: ChattuneError) -> None:
    for rank, error in errors.items():
        monkeypatch.setenv(ERROR_FILE, str(folder / f"{rank.removeprefix('rank')}.json"))
        tell_launcher(error)


STOPPED = Interrupted(15, "saved step 4.")
GONE = RankError("process 0 lost the others: Connection closed by peer.")


@pytest.mark.parametrize(
    ("codes", "errors", "kind", "said"),
    [
        ([1, -9], {"rank0": GONE}, RankError, r"process 1 of 2 was ended by SIGKILL \(out of memory, perhaps\); the others"),
        ([1, 7], {"rank0": GONE}, RankError, "process 1 of 2 ended with exit code 7"),
        ([1, 1], {"rank0": GONE, "rank1": DataError("bad line.", path="a.txt:3")}, DataError, r"a.txt:3: \(process 1 of 2\) bad line"),
        ([1, 1], {"rank0": DivergenceError("diverged."), "rank1": DivergenceError("diverged.")}, DivergenceError, "^diverged"),
        ([143, 143], {"rank0": STOPPED, "rank1": STOPPED}, Interrupted, "saved step 4"),
        ([143, -9], {"rank0": STOPPED}, RankError, "process 1 of 2 was ended by SIGKILL"),
        ([1, -15], {"rank0": GONE}, RankError, "process 0 lost the others"),
    ],
)
@pytest.mark.requirement("C10")
def test_the_cause_is_told_and_not_what_followed_from_it(
    codes: list[int], errors: dict[str, ChattuneError], kind: type[ChattuneError], said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    left(tmp_path, monkeypatch, **errors)
    with pytest.raises(kind, match=said) as found:
        _require_success(codes, tmp_path, tmp_path / "train-0123456789")
    assert found.value.exit_code == (143 if kind is Interrupted else 1)


def test_what_a_process_leaves_is_what_torchrun_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(tmp_path, monkeypatch, rank1=DataError("bad line.", path="a.txt:3", hint="Mend it."))
    told = json.loads((tmp_path / "1.json").read_text())["message"]
    assert told["message"] == "a.txt:3: bad line. Mend it."
    assert int(told["extraInfo"]["timestamp"]) <= time.time()
