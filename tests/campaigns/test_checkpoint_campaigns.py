"""Campaigns against checkpoints alone: kills, faults of the disk, order of writes, bit rot, a reader beside the writer.

The smoke version runs always; ``FULL=1`` runs the figures that RESULTS.md keeps. What needs strace or a mount says so and skips.
"""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import saving

from chattune.core.errors import CorruptError, SpaceError
from chattune.core.progress import talk
from chattune.train import state as train_state
from chattune.train.state import Snapshots

FULL = os.environ.get("FULL") == "1"
SAVING = str(Path(saving.__file__))
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first optimizer of a process imports half of torch: once here, not in every child."""
    save(Snapshots(tmp_path_factory.mktemp("warm")), 1)


def save(snapshots: Snapshots, step: int) -> Path | None:
    return snapshots.save(step, saving.tensors(step), saving.optimizer(step), {"step": step})


def unloadable(folder: Path) -> list[int]:
    """Steps whose checkpoint cannot be read, or is a mixture."""
    bad = []
    for step in train_state.steps(folder):
        try:
            if not saving.whole(train_state.read(folder / f"step-{step:08d}")):
                bad.append(step)
        except CorruptError:
            bad.append(step)
    return bad


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")] if folder.exists() else []


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work` in a child that inherits what is imported; its process id, and a pipe from which its words are read."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            work(write)
        finally:
            os._exit(0)
    os.close(write)
    return child, read


def kill_while_saving(folder: Path, kind: type[Snapshots], chance: random.Random) -> int:
    """Start a writer, kill it at a random moment (every other time inside a save); the last step it acknowledged."""

    def work(pipe: int) -> None:
        snapshots = kind(folder)
        found = snapshots.load() if kind is Snapshots else None
        step = found.step if found else max(train_state.steps(folder), default=0)
        os.write(pipe, b"ready\n")
        while True:
            step += 1
            if save(snapshots, step):
                os.write(pipe, b"%d\n" % step)

    child, pipe = forked(work)
    with os.fdopen(pipe, "rb") as words:
        words.readline()
        for _ in range(chance.randrange(4)):
            words.readline()
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0, 0.05))
        else:
            deadline = time.monotonic() + 5
            while not list(folder.glob(".tmp-*/*")) and time.monotonic() < deadline:
                pass
            time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged = words.read().split()
    return int(acknowledged[-1]) if acknowledged else 0


@pytest.mark.requirement("C1")
def test_killed_writers_lose_no_acknowledged_checkpoint_and_leave_none_unloadable(tmp_path: Path) -> None:
    folder, chance = tmp_path / "state", random.Random(1)
    kills = 200 if FULL else 20
    bad = lost = leftovers = inside = 0
    for _ in range(kills):
        acknowledged = kill_while_saving(folder, Snapshots, chance)
        bad += len(unloadable(folder))
        inside += bool(hidden(folder))
        found = Snapshots(folder).load()
        lost += (found.step if found else 0) < acknowledged
        leftovers += len(hidden(folder))
    print(f"C1 (checkpoints alone): {kills} kills, {inside} inside a save: {bad} unloadable, {lost} lost, {leftovers} leftovers")
    assert inside >= kills // 5  # otherwise nothing was tested
    assert (bad, lost, leftovers) == (0, 0, 0)


@pytest.mark.requirement("C1")
def test_the_kill_campaign_sees_a_writer_that_writes_in_place(tmp_path: Path) -> None:
    """The positive control."""
    chance, bad = random.Random(2), 0
    for attempt in range(40):
        folder = tmp_path / str(attempt) / "state"

        def work(pipe: int, folder: Path = folder) -> None:
            snapshots = saving.InPlace(folder)
            os.write(pipe, b"ready\n")
            for step in range(1, 1000):
                save(snapshots, step)

        child, pipe = forked(work)
        with os.fdopen(pipe, "rb") as words:
            words.readline()
            time.sleep(chance.uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        bad += bool(unloadable(folder))
        if bad >= 2:
            return
    pytest.fail("in 40 kills no half-written checkpoint was seen")


# C3: faults of the disk


def alone() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def traced(
    what: list[str], folder: Path, count: int, *options: str, record: Path = Path("/dev/null")
) -> subprocess.CompletedProcess[str]:
    """`saving.py` under strace, with the given ``-e`` expressions."""
    expressions = [word for expression in what for word in ("-e", expression)]
    command = ["strace", "-f", "-y", "-qq", "-o", str(record), *expressions, sys.executable, SAVING, str(folder), str(count), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=alone(), timeout=300)


@pytest.mark.requirement("C3")
def test_a_file_that_may_not_grow_stops_the_save_with_path_and_free_space_and_harms_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    snapshots = Snapshots(folder)
    save(snapshots, 1)
    whole = sum(f.stat().st_size for f in (folder / "step-00000001").iterdir())
    said: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in range(0, whole, whole // (200 if FULL else 20)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                save(snapshots, 2)
            except SpaceError as error:
                said.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            if train_state.steps(folder) == [1, 2]:
                break  # the largest of its files fits now
            assert unloadable(folder) == []
            assert os.listdir(folder) == ["step-00000001"]
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert len(said) >= 5
    assert all("step-00000002" in text and "free" in text and "File too large" in text for text in said)


@pytest.mark.requirement("C3")
def test_a_full_disk_is_told_and_the_old_checkpoints_stay(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        folder = disk / "state"
        snapshots, warning = Snapshots(folder), Snapshots(folder, on_save_error="warn")
        save(snapshots, 1)
        save(snapshots, 2)
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(b"x" * (free - 60_000))  # less than a checkpoint needs: refused before it is begun
        with pytest.raises(SpaceError, match="are free"):
            save(snapshots, 3)
        assert save(warning, 3) is None
        assert unloadable(folder) == []
        assert sorted(os.listdir(folder)) == ["step-00000001", "step-00000002"]
        (disk / "filler").unlink()
        assert save(snapshots, 3) is not None
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(SpaceError, match="Read-only file system"):
            save(snapshots, 4)
        assert save(warning, 4) is None
        assert unloadable(folder) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


FAULTS = [  # calls, error, every how many calls: prime, so that it wanders over the places of a save
    ("fsync,fdatasync", "EIO", 11), ("rename,renameat,renameat2", "EIO", 2), ("fsync,fdatasync", "ENOSPC", 13),
    ("rename,renameat,renameat2", "ENOSPC", 3), ("mkdir,mkdirat", "ENOSPC", 3), ("unlink,unlinkat,rmdir", "EIO", 3),
    ("write,pwrite64,writev", "ENOSPC", 23), ("write,pwrite64,writev", "EIO", 29),
]  # fmt: skip


@needs_strace
@pytest.mark.requirement("C3")
@pytest.mark.parametrize(("calls", "error", "every"), FAULTS if FULL else FAULTS[:2], ids=lambda value: str(value).split(",")[0])
def test_faults_of_system_calls_leave_whole_checkpoints_and_work_goes_on(calls: str, error: str, every: int, tmp_path: Path) -> None:
    folder, count = tmp_path / "state", 60 if FULL else 16
    saved = subprocess.run([sys.executable, SAVING, str(folder), "2"], capture_output=True, text=True, check=True, env=alone())
    assert saved.stdout.split() == ["ready", "saved", "1", "saved", "2"]
    done = traced([f"trace={calls}", f"inject={calls}:error={error}:when=3+{every}"], folder, count, "--warn")
    failed = done.stdout.count("failed")
    if not calls.startswith("write"):  # which hits the words on stdout too: there only counts what stands
        assert done.returncode == 0, done.stderr[-2000:]
        assert 0 < failed < count or calls.startswith("unlink")
        assert failed == done.stderr.count("was not saved")
    assert unloadable(folder) == []
    acknowledged = [int(step) for step in re.findall(r"^saved (\d+)$", done.stdout, re.M)]
    found = Snapshots(folder).load()
    assert found is not None
    assert found.step >= max(acknowledged, default=2)
    assert hidden(folder) == []
    print(f"C3: {error} at every {every}th {calls.split(',')[0]}: {failed} failed of {count} saves, 0 unloadable")


@needs_strace
@pytest.mark.requirement("C3b")
def test_every_rename_comes_after_the_sync_of_its_files_and_before_that_of_its_parent_and_the_word_saved(tmp_path: Path) -> None:
    folder, trace = tmp_path / "state", tmp_path / "trace"
    assert traced(["trace=openat,write,fsync,rename"], folder, 4, record=trace).returncode == 0
    dirty: set[str] = set()
    parent_synced, published = True, 0
    for line in trace.read_text(errors="replace").splitlines():
        if opened := re.search(r'openat\(.*"([^"]*/\.tmp-step[^"]*/[^"]+)", O_WRONLY', line):
            dirty.add(Path(opened[1]).name)
        elif written := re.search(r"write\(\d+<([^>]*/\.tmp-step[^>]*)>", line):
            dirty.add(Path(written[1]).name)
        elif synced := re.search(r"fsync\(\d+<([^>]*)>\) = 0", line):
            dirty.discard(Path(synced[1]).name)
            if Path(synced[1]).name.startswith(".tmp-step"):
                assert not dirty, "the directory is synced after its files"
            parent_synced = parent_synced or synced[1] == str(folder)
        elif moved := re.search(r'rename\("([^"]*)", "([^"]*)"\) = 0', line):
            if Path(moved[1]).name.startswith(".tmp-"):
                assert not dirty, f"{moved[2]} was put in place before {dirty} was on the disk"
                parent_synced, published = False, published + 1
            else:
                assert parent_synced, "an old checkpoint went before the new one was on the disk"
        elif "write(1<" in line and "saved" in line:
            assert parent_synced, "the word was given before the name was on the disk"
    assert published == 4


@needs_strace
@pytest.mark.requirement("C1")
def test_a_kill_at_each_system_call_of_a_save_leaves_the_old_checkpoints_whole(tmp_path: Path) -> None:
    """`fsync` and `rename` one by one: the places where a crash between two steps would show."""
    every = [("fsync", n) for n in range(1, 13)] + [("rename", n) for n in range(1, 6)]
    for call, number in every if FULL else [("fsync", 5), ("rename", 3)]:
        folder = tmp_path / f"{call}{number}"
        done = traced([f"trace={call}", f"inject={call}:signal=KILL:when={number}"], folder, 4)
        assert done.returncode != 0, f"{call} {number} was never reached"
        assert unloadable(folder) == []
        acknowledged = [int(step) for step in re.findall(r"saved (\d+)", done.stdout)]
        found = Snapshots(folder).load()
        assert (found.step if found else 0) >= max(acknowledged, default=0)
        assert hidden(folder) == []


# C6: bit rot


@pytest.mark.requirement("C6", "I28")
def test_one_flipped_byte_anywhere_is_detected_and_the_previous_checkpoint_used(tmp_path: Path) -> None:
    folder, chance, count = tmp_path / "state", random.Random(6), 500 if FULL else 60
    snapshots = Snapshots(folder)
    save(snapshots, 1)
    save(snapshots, 2)
    files = sorted((folder / "step-00000002").iterdir())
    sizes = [file.stat().st_size for file in files]
    detected = used = 0
    talk().quiet = True
    try:
        for number in range(count):
            # half of them weighted by size, half with each file equally likely: headers and manifest are small
            file = chance.choices(files, sizes)[0] if number % 2 else files[number // 2 % len(files)]
            data = bytearray(file.read_bytes())
            position, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
            data[position] ^= bit
            file.write_bytes(data)
            snapshot, damaged = train_state.newest(folder)
            detected += [path.name for path in damaged] == ["step-00000002"]
            used += snapshot is not None and saving.whole(snapshot) and snapshot.step == 1
            data[position] ^= bit
            file.write_bytes(data)
    finally:
        talk().quiet = False
    print(f"C6: {detected} of {count} flipped bytes detected, the previous one used {used} times")
    assert (detected, used) == (count, count)
    assert unloadable(folder) == []


# C7: rotation beside a reader


@pytest.mark.requirement("C7")
def test_a_reader_beside_the_writer_always_sees_a_whole_checkpoint(tmp_path: Path) -> None:
    folder, rotations = tmp_path / "state", 1000 if FULL else 80
    save(Snapshots(folder), 1)

    def work(pipe: int) -> None:
        snapshots = Snapshots(folder)
        for step in range(2, rotations + 2):
            save(snapshots, step)

    child, pipe = forked(work)
    reads, last = 0, 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        snapshot, damaged = train_state.newest(folder)
        assert damaged == []
        assert snapshot is not None
        assert saving.whole(snapshot)
        assert snapshot.step >= last
        last, reads = snapshot.step, reads + 1
    os.close(pipe)
    print(f"C7: {rotations} rotations, {reads} reads, 0 of them half-deleted")
    assert reads > rotations // 20
    assert train_state.steps(folder) == [rotations, rotations + 1]
