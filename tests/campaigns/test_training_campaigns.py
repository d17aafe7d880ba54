"""Campaigns against a whole training: kills, exact continuation, numbers that are none, signals, division of work.

The smoke version runs always; ``FULL=1`` runs the figures that RESULTS.md keeps.
"""

from __future__ import annotations

import copy
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training as small
from material import TINY, planned_again, unfinish
from safetensors.torch import load_file
from torch import Tensor

from chattune.core import files
from chattune.core.errors import CorruptError, DivergenceError, Interrupted
from chattune.core.progress import talk
from chattune.core.record import Record
from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.train import loop
from chattune.train import state as train_state
from chattune.train.config import TrainConfig
from chattune.train.interrupt import listening
from chattune.train.objectives import LossView
from chattune.train.objectives.next_token import NextToken

FULL = os.environ.get("FULL") == "1"
pytestmark = pytest.mark.campaign


@pytest.fixture(autouse=True)
def _one_deterministic_quiet_thread() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    talk().quiet = True
    yield
    talk().quiet = False
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def config(optimizer: str, **changes: Any) -> TrainConfig:
    """Everything that has a state: moments, a moving average, dropout's draws, micro-batches, an order over several epochs.

    ``lora`` is AdamW on an adapter, whose thin matrices alone learn and are saved.
    """
    if optimizer == "lora":
        return config("adamw", adapter={"name": "lora", "rank": 4, "dropout": 0.1}, **changes)
    regularizers = [{"name": "dropout", "drop": 0.1}, {"name": "label_smoothing", "strength": 0.1}, {"name": "ema", "decay": 0.9}]
    own = {"name": optimizer, "lr": 0.01}
    plain = {"steps": 24, "accumulate": 3, "evaluations": 4, "save_steps": 5, "optimizer": own, "regularizers": regularizers}
    return TrainConfig.model_validate({**plain, **changes})


# C2: exact continuation

EPOCH = small.made_training(config("sgd")).order.batches_per_epoch  # type: ignore[attr-defined]
MOMENTS = {"mid-epoch": EPOCH + 2, "epoch edge": EPOCH, "after a look": 12, "first step": 1, "on a checkpoint": 10}


def same_as_uninterrupted(whole: Path, parts: Path, trained: loop.Training, resumed: loop.Training) -> None:
    assert small.losses(parts) == small.losses(whole)
    assert small.digest(resumed.chosen()) == small.digest(trained.chosen())
    assert small.digest(dict(resumed.worker.master.named_parameters())) == small.digest(dict(trained.worker.master.named_parameters()))
    assert small.digest(resumed.best_weights) == small.digest(trained.best_weights)
    looks = [{key: value for key, value in entry.items() if key != "seconds"} for entry in trained.state.history]
    assert looks == [{key: value for key, value in entry.items() if key != "seconds"} for entry in resumed.state.history]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd", "lora"])
@pytest.mark.requirement("C2", "I29")
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(optimizer: str, tmp_path: Path) -> None:
    assert 3 < EPOCH < 18, "the run must cross the edge of an epoch"
    compared = 0
    for seed in range(50 if FULL else 1):
        folder = tmp_path / str(seed)
        trained = small.fitted(config(optimizer), made(folder / "whole"), seed)
        for moment, step in MOMENTS.items():
            parts = made(folder / moment)
            with pytest.raises(Interrupted, match=f"saved step {step};") as error:
                small.fitted(config(optimizer), parts, seed, interrupt_at=step)
            assert error.value.exit_code == 143
            same_as_uninterrupted(folder / "whole", parts, trained, small.fitted(config(optimizer), parts, seed))
            compared += 1
        shutil.rmtree(folder)
    print(f"C2: {optimizer}: {compared} resumed runs of {compared} equal the uninterrupted one to the bit")


class PowerCut(Exception):
    pass


CALLS = [0, 0]  # micro-batches seen, and the one at which the power goes


class FailingObjective(NextToken):
    """Next token, until the power goes in the middle of an update."""

    def view(self, model: LanguageModel, batch: Batch, *, full: bool = False) -> LossView:
        CALLS[0] += 1
        if CALLS[0] == CALLS[1]:
            raise PowerCut
        return super().view(model, batch, full=full)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lora"])
@pytest.mark.requirement("C2", "I29")
def test_a_training_cut_in_the_middle_of_accumulating_continues_to_the_bit(optimizer: str, tmp_path: Path) -> None:
    trained = small.fitted(config(optimizer), made(tmp_path / "whole"))
    for cut in range(20, 60, 2) if FULL else (32, 50):
        parts = made(tmp_path / str(cut))
        CALLS[:] = [0, cut]
        with pytest.raises(PowerCut):
            small.fitted(config(optimizer, objective=FailingObjective()), parts)
        resumed = small.fitted(config(optimizer), parts)
        same_as_uninterrupted(tmp_path / "whole", parts, trained, resumed)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# C4: numbers that are none


class _Spoil(torch.autograd.Function):
    """The identity, with a gradient that is spoilt."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.value, None


class SpoiltObjective(NextToken):
    """Next token whose loss or gradient is no number in the micro-batches from `first` on, `count` times."""

    kind: str = "loss"
    value: str = "nan"
    first: int = 0
    count: int = 1

    def view(self, model: LanguageModel, batch: Batch, *, full: bool = False) -> LossView:
        CALLS[0] += 1
        spoilt = self.first <= CALLS[0] - 1 < self.first + self.count
        if spoilt and self.kind == "data":
            batch = copy.copy(batch)
            object.__setattr__(batch, "weights", batch.weights * float(self.value))
        view = super().view(model, batch, full=full)
        if spoilt and self.kind == "loss":
            view.loss = view.loss * float(self.value)
        elif spoilt and self.kind == "gradient":
            view.loss = _Spoil.apply(view.loss, float(self.value))
        return view


KINDS = [("loss", "nan"), ("loss", "inf"), ("gradient", "nan"), ("gradient", "inf"), ("data", "nan")]
PATTERNS = [(0, 1), (7, 1), (10, 2), (12, 10_000)]  # micro-batches: the first, one in the middle, two, all from then on
CASES = [(optimizer, *kind, *pattern) for optimizer in ("adamw", "muon") for kind in KINDS for pattern in PATTERNS]


@pytest.mark.parametrize(("optimizer", "kind", "value", "first", "count"), CASES)
@pytest.mark.requirement("C4", "I31")
def test_a_number_that_is_none_never_reaches_the_weights(
    optimizer: str, kind: str, value: str, first: int, count: int, tmp_path: Path
) -> None:
    CALLS[:] = [0, 0]
    spoilt = SpoiltObjective(kind=kind, value=value, first=first, count=count)
    asked = config(optimizer, steps=14, accumulate=2, save_steps=1, objective=spoilt)
    training, snapshots = small.begun(asked, made(tmp_path / "run"))
    record = Record(tmp_path / "run" / "metrics.jsonl")
    persistent = count > 100
    with listening() as interrupt:
        if persistent:
            with pytest.raises(DivergenceError, match=r"epoch \d+, batch \d+") as error:
                loop.fit(training, small.around(record, snapshots, interrupt, training))
            assert error.value.exit_code == 1
            assert training.state.step <= first // 2 + 3
        else:
            loop.fit(training, small.around(record, snapshots, interrupt, training))
            assert training.state.step == 14
    left_out = [row["step"] for row in record.rows() if row.get("left_out")]
    recorded = training.state.step - persistent  # the update that ended the run is told by the error
    assert left_out == [n for n in range(1, recorded + 1) if first // 2 < n <= (first + count - 1) // 2 + 1]
    saved = snapshots.load()
    assert saved is not None
    for weights in (dict(training.worker.master.named_parameters()), training.chosen(), training.best_weights, saved.model):
        assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())
    assert training.state.best is not None
    assert training.state.best["loss"] < float("inf")


@pytest.mark.requirement("C4", "I31")
def test_a_weight_that_is_no_number_is_neither_saved_nor_judged(tmp_path: Path) -> None:
    training, snapshots = small.begun(config("adamw"), made(tmp_path / "run"))
    training.step()
    training.save(snapshots)
    with torch.no_grad():
        training.parameters[0].view(-1)[3] = float("nan")
    with pytest.raises(DivergenceError, match="not finite"):
        training.save(snapshots)
    record = Record(tmp_path / "run" / "metrics.jsonl")
    with listening() as interrupt, pytest.raises(DivergenceError):
        loop.fit(training, small.around(record, snapshots, interrupt, training))
    found = snapshots.load()
    assert found is not None
    assert found.step == 1
    assert all(bool(torch.isfinite(weight).all()) for weight in found.model.values())


# C8: division of work


def relative_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, float]:
    """‖ours − theirs‖ / ‖theirs‖ of the whole gradient, and of the parameter where it is largest; NaN stays NaN."""
    assert all(theirs[n].abs().max() > 0 for n in theirs)
    each = torch.stack([(ours[n] - theirs[n]).norm() / theirs[n].norm() for n in theirs])
    difference = torch.cat([(ours[n] - theirs[n]).flatten() for n in theirs]).norm()
    return float(difference / torch.cat([t.flatten() for t in theirs.values()]).norm()), float(each.max())


@pytest.mark.requirement("C8", "I30", "R080")
def test_one_gradient_for_32_rows_8_by_4_32_by_1_and_two_processes(tmp_path: Path) -> None:
    whole = small.gradients(1)
    found = {"8 x 4": small.gradients(4), "32 x 1": small.gradients(32)}
    for accumulate in (1, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        out = tmp_path / f"{accumulate}.safetensors"
        command = [sys.executable, small.__file__]
        processes = [
            subprocess.Popen([*command, str(rank), port, str(out), str(accumulate)], env=alone(), stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        said = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        found[f"2 processes x {accumulate}"] = load_file(out)
        if not FULL:
            break
    differences = {name: relative_difference(gradients, whole) for name, gradients in found.items()}
    print("C8:", {name: f"{whole:.1e}, at most {most:.1e} in a parameter" for name, (whole, most) in differences.items()})
    for whole, most in differences.values():
        assert whole <= 1e-6  # float32 keeps 6e-8 of each number; sums of 700 tokens in another order
        assert most <= 3e-6


def alone() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


# C1 and C5: the command line under kills and signals

OVERRIDES = [*TINY, "train.steps=25", "train.save_steps=1", "train.accumulate=2", "train.optimizer=adamw", "train.probe_dialogs=0"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with a train run that was finished once and is only planned again, and the digest of the weights it came to."""
    return planned_again(tmp_path_factory.mktemp("killed"), OVERRIDES)


def start(run: Path) -> int:
    """``chattune resume RUN`` in a child that inherits what is imported, once it has begun to train; its process id."""
    (run.parent / "said.txt").unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with (run.parent / "said.txt").open("w", buffering=1) as said:
                sys.stdout = sys.stderr = said
                talk.cache_clear()
                from chattune.cli import main

                code = main(["resume", str(run), "--home", str(run.parent)])
        finally:
            os._exit(code)
    said = run.parent / "said.txt"
    deadline = time.monotonic() + 120
    while not (said.exists() and "computing on" in said.read_text()):
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.002)
    return child


def ended(child: int) -> int:
    """Its exit code, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def acknowledged(run: Path) -> int:
    """The last step whose checkpoint was saved for certain: the next one was recorded after it."""
    record = run / "metrics.jsonl"
    rows = files.read_lines_of_json(record) if record.exists() else []
    return max((row["step"] for row in rows if "event" not in row), default=1) - 1


@pytest.mark.requirement("C1")
def test_killed_trainings_lose_nothing_and_come_to_the_same_weights(planned: tuple[Path, str]) -> None:
    run, reference = planned
    state, chance = run / "state", random.Random(11)
    kills = 200 if FULL else 20
    unloadable = lost = leftovers = inside = finished = equal = 0
    killed = 0
    while killed < kills:
        child = start(run)
        time.sleep(chance.uniform(0.0, 0.4))
        if chance.random() < 0.5:
            while not list(state.glob(".tmp-*")) and not (run / "manifest.json").exists():
                time.sleep(0.0002)
            time.sleep(chance.uniform(0.0, 0.005))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (run / "manifest.json").exists():
            finished, equal = finished + 1, equal + (files.digest_of(run / "model.safetensors") == reference)
            unfinish(run)
            continue
        killed += 1
        inside += bool(list(state.glob(".*")))
        for step in train_state.steps(state):
            try:
                train_state.read(state / f"step-{step:08d}")
            except CorruptError:
                unloadable += 1
        lost += max(train_state.steps(state), default=0) < acknowledged(run)
        train_state.Snapshots(state).load(allow_changes=True)  # as the next start does
        leftovers += len(list(state.glob(".*")))
    assert ended(start(run)) == 0, (run.parent / "said.txt").read_text()
    finished, equal = finished + 1, equal + (files.digest_of(run / "model.safetensors") == reference)
    print(
        f"C1: {kills} kills of a training, {inside} inside a save: {unloadable} unloadable, {lost} lost, {leftovers} leftovers; "
        f"{equal} of {finished} finished runs have the uninterrupted one's weights to the bit"
    )
    assert inside >= kills // 5
    assert (unloadable, lost, leftovers) == (0, 0, 0)
    assert equal == finished


@pytest.mark.requirement("C5", "I33")
def test_sigterm_saves_and_exits_143_and_the_resumed_run_comes_to_the_same_weights(planned: tuple[Path, str]) -> None:
    run, reference = planned
    unfinish(run)
    chance, slowest, stopped = random.Random(5), 0.0, 0
    wanted = 30 if FULL else 4
    while stopped < wanted:
        child = start(run)
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(child, signal.SIGTERM)
        began = time.monotonic()
        code = ended(child)
        slowest = max(slowest, time.monotonic() - began)
        said = (run.parent / "said.txt").read_text()
        if code == 0:
            assert files.digest_of(run / "model.safetensors") == reference
            unfinish(run)
            continue
        assert code == 143, said
        stopped += 1
        told = re.search(rf"saved step (\d+); continue with `chattune resume {run.name}`", said)
        if told:  # else it had not begun to train, or was already writing the result
            assert max(train_state.steps(run / "state")) == int(told[1])
    assert ended(start(run)) == 0
    assert files.digest_of(run / "model.safetensors") == reference
    print(f"C5: {stopped} of {stopped} trainings stopped by SIGTERM exit 143 and are resumable; the slowest took {slowest:.2f} s")
    assert slowest < 10


@pytest.mark.requirement("C5", "I33")
def test_ctrl_c_on_the_real_command_saves_says_how_to_go_on_and_exits_130(planned: tuple[Path, str]) -> None:
    run, reference = planned
    unfinish(run)
    command = [sys.executable, "-m", "chattune.cli", "resume", str(run), "--home", str(run.parent)]
    with subprocess.Popen(command, env=alone(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while acknowledged(run) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert re.search(r"saved step \d+; continue with `chattune resume train-", said)
    assert "Traceback" not in said
    done = subprocess.run(command, env=alone(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr
    assert files.digest_of(run / "model.safetensors") == reference
