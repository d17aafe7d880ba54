"""This process among those that a launcher (torchrun, Slurm, `train.processes`) started together. Knows no torch.

All of them run the same program. The first one plans, writes and prints; the others take part where work is shared and
otherwise wait for what the first one writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from chattune.core import files
from chattune.core.errors import ChattuneError, RankError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun, and our own launcher, expect the reason why a process ended


def launched() -> bool:
    """Whether a launcher decided how many processes there are, one included."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """This process' number, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def count() -> int:
    """How many processes work together."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def beside() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


def first() -> bool:
    return rank() == 0


def await_file(path: Path) -> None:
    """Return when the first process has written `path`; `RankError` when the launcher is gone, which would have ended us."""
    launcher, pause = os.getppid(), 0.02
    while not path.exists():
        if os.getppid() != launcher:
            raise RankError("the launcher is gone.", path=str(path), rule="a first process that writes it")
        time.sleep(pause)
        pause = min(pause * 1.5, 1.0)


def tell_launcher(error: BaseException) -> None:
    """Leave the reason for ending where the launcher looks for it (torchrun prints it beside the rank); nowhere: nothing."""
    place = os.environ.get(ERROR_FILE)
    if not place:
        return
    facts: dict[str, Any] = {"kind": type(error).__name__}
    if isinstance(error, ChattuneError):
        facts |= {"message": error.message, "exit_code": error.exit_code, **error.as_json()["error"]}
        facts |= {"rule": error.rule}
    told = {"message": str(error), "extraInfo": {"py_callstack": "", "timestamp": str(int(time.time()))}, "chattune": facts}
    with contextlib.suppress(OSError):  # the error itself is being told already
        files.write_atomically(Path(place), json.dumps({"message": told}, ensure_ascii=False, default=str))
