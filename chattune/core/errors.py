"""Every error that chattune raises on purpose.

    ChattuneError            exit 1   something that the user can mend
    ├── UsageError           exit 2   the command or the recipe cannot be understood
    │   ├── SettingError              a setting is unknown or outside its limits
    │   └── UnknownName               a part, run, stage or command of that name does not exist
    ├── DataError                     a file of conversations cannot be used, or not enough of it
    ├── ArtifactError                 a run directory is missing, unfinished or damaged
    │   └── CorruptError              a digest does not match: the bytes changed after they were written
    ├── ResumeError                   a checkpoint belongs to another recipe or other data
    ├── SpaceError                    the disk is full, or would be
    ├── RankError                     a process that others depend on ended, or cannot be reached
    ├── DivergenceError               loss or gradient stayed non-finite
    └── TrialError           exit 3   a trial did not improve the model, so the whole training was not begun
    Interrupted              exit 130/143: a signal asked the work to stop; state was saved

An error says what happened in one line, where (`path`: a dotted setting path or `file:line`), the value, the rule,
and the way out (`hint`). Anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


class ChattuneError(Exception):
    """A mistake or a circumstance that the user can mend.

    `message` is one line; `path` the place (dotted setting path or ``file:line``); `value` what stood there;
    `rule` what was asked for; `hint` the next thing to do, a command where there is one.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, path: str | None = None, value: Any = None, rule: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.path, self.value, self.rule, self.hint = message, path, value, rule, hint

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path else ""
        way_out = f" {self.hint}" if self.hint else ""
        return f"{place}{self.message}{way_out}"

    def as_json(self) -> dict[str, Any]:
        """The form that ``--json`` prints: ``{"error": {"path", "value", "rule", "hint"}}``."""
        value = self.value
        if not isinstance(value, (str, int, float, bool, type(None))) or (isinstance(value, float) and not math.isfinite(value)):
            value = repr(value)  # JSON has no infinity either
        return {"error": {"path": self.path, "value": value, "rule": self.rule or self.message, "hint": self.hint}}


class UsageError(ChattuneError):
    exit_code = 2


class SettingError(UsageError):
    """A setting that does not exist or a value outside its limits."""


class UnknownName(UsageError):
    """A name that nothing bears; says the nearest one."""


class DataError(ChattuneError):
    """A file of conversations that cannot be used; `path` holds file and line."""


class ArtifactError(ChattuneError):
    """A run directory that is missing, unfinished or of the wrong kind."""


class CorruptError(ArtifactError):
    """The bytes on disk are not the bytes that were written."""


class ResumeError(ChattuneError):
    """A checkpoint that belongs to another recipe, other data or another version."""


class SpaceError(ChattuneError):
    """Not enough room on the disk."""


class RankError(ChattuneError):
    """One of several processes that train together ended, or cannot be reached."""


class DivergenceError(ChattuneError):
    """Loss or gradients stayed non-finite; the weights on disk are still finite."""


class TrialError(ChattuneError):
    """The trial of a fine-tuning did not pass its gate; what it measured is kept."""

    exit_code = 3


class Interrupted(ChattuneError):
    """A signal asked the work to stop; what was done is saved."""

    def __init__(self, signal_number: int, message: str, **where: Any) -> None:
        super().__init__(message, **where)
        self.exit_code = 128 + signal_number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"Did you mean 'lr'?"`` for the nearest known name, or the list when nothing is near and it is short."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"There are: {', '.join(known)}." if known and len(known) <= 24 else ""
