"""`Conversations`: dialogs in one file, as they were read or cleaned. `Dialogs`: the same in three splits.

Both carry the account of everything before them: what was read, what is kept, and what was dropped for which reason.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from chattune.core import files
from chattune.core.artifact import Artifact
from chattune.dialogs.dialog import Dialog, Drop

SPLITS = ("train", "validation", "test")
ALL, DROPPED, COPIES, CHANGES = "conversations.jsonl", "dropped.jsonl", "copies.json", "changes.jsonl"


class Stored:
    """The dialogs of one file of ours, streamed as often as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Dialog]:
        return map(Dialog.from_dict, files.read_lines_of_json(self.path))

    @cached_property
    def _count(self) -> int:
        with self.path.open("rb") as file:
            return sum(1 for _ in file)

    def __len__(self) -> int:
        return self._count

    def lines(self) -> Iterator[bytes]:
        """The lines that hold the dialogs, each with its end."""
        with self.path.open("rb") as file:
            yield from file

    def __contains__(self, dialog: object) -> bool:
        return any(own == dialog for own in self)

    def stretches(self, together: int) -> list[Stretch]:
        """The file cut into stretches of so many dialogs, in order; what they hold is read where it is wanted."""
        found: list[Stretch] = []
        path, begin, end = self.path.absolute(), 0, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                end += len(line)
                if not number % together:
                    found.append(Stretch(path, begin, end - begin))
                    begin = end
        return [*found, Stretch(path, begin, end - begin)] if end > begin else found


@dataclass(frozen=True)
class Stretch:
    """Whole lines of a file of ours: where they begin, and how many bytes they are."""

    path: Path
    begin: int
    size: int

    def __iter__(self) -> Iterator[tuple[bytes, Dialog]]:
        """Each line, with its end, and the dialog that it holds."""
        with self.path.open("rb") as file:
            file.seek(self.begin)
            content = file.read(self.size)
        for line, record in files.lines_of_json(io.BytesIO(content), self.path):
            yield line, Dialog.from_dict(record)


class _Accounted(Artifact):
    @property
    def summary(self) -> dict[str, Any]:
        """``{"counts": {"read", "kept", "dropped": {reason: n}}, "messages": …, "sources": […], …}``."""
        summary: dict[str, Any] = files.read_json(self.path / "summary.json")
        return summary

    def drops(self) -> Iterator[Drop]:
        """Everything that was left out on the way to these dialogs, in the order of the stages."""
        for data in files.read_lines_of_json(self.path / DROPPED):
            yield Drop(**data)


class Conversations(_Accounted):
    """``conversations.jsonl``, ``dropped.jsonl``, ``copies.json`` (how often what is kept once was read) and ``summary.json``.

    After cleaners that log, ``changes.jsonl`` tells every change of a message: the place, and what stood there before and after.
    """

    stage: ClassVar[str] = "collect"
    also: ClassVar[tuple[str, ...]] = ("clean",)

    def read(self) -> Stored:
        """The dialogs in the order in which they were read."""
        return Stored(self.path / ALL)

    def copies(self) -> dict[str, int]:
        """How often a dialog was read, by its id, where that was more than once."""
        copies: dict[str, int] = files.read_json(self.path / COPIES)
        return copies


class Dialogs(_Accounted):
    """``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``dropped.jsonl`` and ``summary.json`` (counts and split)."""

    stage: ClassVar[str] = "split"
    also: ClassVar[tuple[str, ...]] = ("balance", "augment")

    def read(self, split: str) -> Stored:
        """The dialogs of one split in their stored order, streamed."""
        return Stored(self.path / f"{split}.jsonl")


def write_dialogs(path: Path, dialogs: Iterable[Dialog]) -> int:
    """Write dialogs as they come, one a line, and put them to `path` when all are there; how many they were."""
    count = 0
    with writing_dialogs(path) as put:
        for dialog in dialogs:
            put(dialog)
            count += 1
    return count


@contextlib.contextmanager
def writing_dialogs(path: Path) -> Iterator[Callable[[Dialog], None]]:
    """What puts one dialog after the other into a file that stands at `path` at the end."""
    with files.replacing(path) as file:

        def put(dialog: Dialog) -> None:
            file.write(line_of(dialog))

        yield put


@contextlib.contextmanager
def writing_rows(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What puts one row after the other into a file that stands at `path` at the end."""
    with files.replacing(path) as file:

        def put(row: Mapping[str, Any]) -> None:
            file.write(_line(row))

        yield put


@contextlib.contextmanager
def writing_drops(path: Path, before: Iterable[Drop] = ()) -> Iterator[Callable[[Drop], None]]:
    """What puts one `Drop` after the other, behind those of `before`, into a file that stands at `path` at the end."""
    with files.replacing(path) as file:

        def put(drop: Drop) -> None:
            file.write(_line(asdict(drop)))

        for drop in before:
            put(drop)
        yield put


def accounted(before: Mapping[str, Any], kept: int, drops: Mapping[str, int]) -> dict[str, Any]:
    """The counts after a stage that dropped so many more for each reason. What does not add up is a defect of ours."""
    reasons = Counter(before["dropped"]) + Counter(drops)
    if before["read"] != kept + sum(reasons.values()):
        raise AssertionError(f"{before['read']} read, {kept} kept, {dict(reasons)} dropped: something was lost silently")
    return {"read": before["read"], "kept": kept, "dropped": dict(sorted(reasons.items()))}


def line_of(dialog: Dialog) -> bytes:
    """The line in which a file of ours holds `dialog`."""
    return _line(dialog.as_dict())


_json = json.JSONEncoder(ensure_ascii=False).encode  # made once: `json.dumps` makes an encoder for each line


def _line(row: Mapping[str, Any]) -> bytes:
    # Metadata and details may hold half of a surrogate pair, which only its escape can stand for.
    return f"{_json(row)}\n".encode("utf-8", "backslashreplace")
