"""`train.processes`: the processes of one training on this machine, started, watched and ended as one.

What torchrun does across machines, without its agent: the command that the user gave stays the parent, keeps the run's lock, hands
signals on, and says which process ended and why. The workers are this module: ``python -m chattune.train.launch RUN RENDEZVOUS``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chattune.core import errors, files, processes
from chattune.core.errors import ChattuneError, Interrupted, RankError
from chattune.core.progress import talk
from chattune.core.stage import arguments_of, load_stage, question_of
from chattune.train.interrupt import Interrupt, listening

GRACE = 15.0  # seconds for the others to end after one was lost: they may be writing a checkpoint
_PAUSE = 0.05


def launch(run: Path, count: int) -> None:
    """Train `run` with `count` processes; returns when its files stand, or raises what ended it.

    `RankError` names the process that was lost. A signal is handed to all of them, which save and end together.
    """
    meeting = Path(tempfile.mkdtemp(prefix="chattune-"))  # where they meet, and leave their reasons
    children: list[subprocess.Popen[bytes]] = []
    try:
        with listening() as asked:
            children = [_start(run, meeting, rank, count) for rank in range(count)]
            codes = _watch(children, asked)
        _require_success(codes, meeting, run)
    finally:
        _end(children)
        shutil.rmtree(meeting, ignore_errors=True)


def _start(run: Path, meeting: Path, rank: int, count: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "PYTHONPATH": os.pathsep.join(place for place in sys.path if place), processes.ERROR_FILE: str(meeting / f"{rank}.json"),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0"),
    }  # fmt: skip
    quiet = ["--quiet"] if talk().quiet else []
    command = [sys.executable, "-P", "-m", __name__, str(run.absolute()), str(meeting / "rendezvous"), *quiet]
    # A session of its own: Ctrl-C reaches the parent alone, which hands it on once. Its open stdin tells a worker that we live.
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def _watch(children: list[subprocess.Popen[bytes]], asked: Interrupt) -> list[int]:
    """Exit codes by rank, once all have ended: by themselves, by a signal handed on, or because one was lost."""
    handed, deadline = False, None
    while True:
        codes = [child.poll() for child in children]
        ended = [code for code in codes if code is not None]
        if len(ended) == len(codes):
            return ended
        if asked.signal is not None and not handed:
            handed = True
            _send(children, asked.signal)
        if deadline is None and any(code != 0 for code in ended):
            deadline = time.monotonic() + GRACE
            if not handed:
                time.sleep(4 * _PAUSE)  # an error that all of them met ends all of them: let them say it
                handed = True
                _send(children, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _send(children, signal.SIGKILL)
        time.sleep(_PAUSE)


def _send(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    _send(children, signal.SIGKILL)
    for child in children:
        child.wait()
        if child.stdin is not None:
            child.stdin.close()


def _require_success(codes: list[int], meeting: Path, run: Path) -> None:
    if not any(codes):
        return
    told = {rank: error for rank in range(len(codes)) if (error := _told(meeting / f"{rank}.json")) is not None}
    hint = f"What was saved is intact: continue with `chattune resume {run.name}`."
    stopped = [error for error in told.values() if isinstance(error, Interrupted)]
    causes = {rank: error for rank, error in told.items() if not isinstance(error, (Interrupted, RankError))}
    for rank, code in enumerate(codes):
        if code != 0 and rank not in told and not (stopped and code == stopped[0].exit_code) and -code not in (signal.SIGTERM, 0):
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            why = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
            causes.setdefault(rank, RankError(
                f"process {rank} of {len(codes)} {how}{why}; the others were stopped.", path="train.processes", value=rank,
                rule="every process stays until the end", hint=hint,
            ))  # fmt: skip
    if causes:
        rank = min(causes)
        raise causes[rank] if rank == 0 or isinstance(causes[rank], RankError) else _of_rank(causes[rank], rank, len(codes))
    if stopped:
        raise stopped[0]
    raise next(iter(told.values()), RankError(f"the processes ended with {codes}.", path="train.processes", hint=hint))


def _told(path: Path) -> ChattuneError | None:
    """The error that a worker left."""
    if not path.exists():
        return None
    facts: dict[str, Any] = files.read_json(path)["message"]["chattune"]
    where = {key: facts.get(key) for key in ("path", "value", "rule", "hint")}
    if facts["kind"] == "Interrupted":
        return Interrupted(int(facts["exit_code"]) - 128, facts["message"], **where)
    kind = getattr(errors, facts["kind"], ChattuneError)
    return kind(facts.get("message", "ended without a reason."), **where) if issubclass(kind, ChattuneError) else None


def _of_rank(error: ChattuneError, rank: int, count: int) -> ChattuneError:
    error.message = f"(process {rank} of {count}) {error.message}"
    return error


def main(arguments: list[str]) -> int:
    """One worker: its part of the training of a planned run."""
    run, meeting = Path(arguments[0]), arguments[1]
    talk().quiet = "--quiet" in arguments[2:] or not processes.first()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with _our_errors():
            from chattune.train.world import World

            World.join(f"file://{meeting}")
            load_stage(question_of(run)["stage"]).function(**arguments_of(run), out=run)
    except ChattuneError as error:
        processes.tell_launcher(error)
        return error.exit_code
    return 0


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    """What escapes becomes an error of ours, with its traceback on stderr where it is none that a user can mend."""
    try:
        yield
    except ChattuneError:
        raise
    except MemoryError:
        raise ChattuneError(
            "not enough memory.", path="train", rule="enough memory", hint="Lower model.size, train.batch_tokens or the context."
        ) from None
    except Exception as error:
        from chattune.train.world import lost

        gone: ChattuneError | None = lost(error, processes.rank())
        if gone is None:
            import traceback

            traceback.print_exc()
            gone = ChattuneError(f"a bug in chattune: {type(error).__name__}: {' '.join(str(error).split())[:200]}.", path="train")
        raise gone from None


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)  # the parent is gone, and with it the run's lock: another may begin


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # all is written: what torch would do to leave takes seconds, and waits for processes that may be gone
