"""Gathering: every source read, dialogs brought into their normal shape, exact repetitions left out; one dialog in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chattune.core.errors import DataError
from chattune.core.part import kind
from chattune.dialogs.detect import detect
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers import Reader
from chattune.dialogs.shape import MessageCounts, Shaped, content_key, shaped
from chattune.dialogs.sources import SourceFile, source_files


@dataclass(frozen=True)
class Wanted:
    """Which sources to read, by which reader (none: the one that each file's format asks for), in which encoding."""

    sources: Sequence[str]
    format: Reader | None = None
    encoding: str = "utf-8"


@dataclass
class Account:
    """What was read and what became of it."""

    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    sources: list[dict[str, Any]] = field(default_factory=list)
    messages: MessageCounts = field(default_factory=MessageCounts)
    repeated: dict[str, int] = field(default_factory=dict)  # id → how often it was read, where that was more than once


def read_sources(wanted: Wanted) -> Iterator[Dialog | Drop]:
    """Everything in the sources as it is read, before anything is shaped or left out."""
    for file in source_files(wanted.sources):
        yield from reader_of(file, wanted).read(file.path)


def gathered(wanted: Wanted, account: Account) -> Iterator[Dialog | Drop]:
    """Every dialog that is kept, shaped, with an id of its own, and a `Drop` for every other thing that was read."""
    said: dict[bytes, str] = {}
    ids = _Ids()
    for file in source_files(wanted.sources):
        reader = reader_of(file, wanted)
        before, kept = account.read, 0
        for item in reader.read(file.path):
            account.read += 1
            found = shaped(item) if isinstance(item, Dialog) else item
            if isinstance(found, Shaped):
                key, dialog = bytes.fromhex(content_key(found.dialog))[:16], found.dialog
                if key not in said:
                    said[key] = ids.own(dialog.id)
                    account.messages.add(dialog, found.empty, found.joined)
                    kept += 1
                    yield replace(dialog, id=said[key], source=file.source, file=file.shown)
                    continue
                account.repeated[said[key]] = account.repeated.get(said[key], 1) + 1
                found = Drop("duplicate", file.shown, dialog.line, f"{dialog.id} says the same as {said[key]}")
            if isinstance(item, Dialog):
                account.messages.drop(item)
            account.reasons[found.reason] += 1
            yield replace(found, file=file.shown)
        if account.read == before:
            raise DataError(f"holds no conversation that {reader.name} can read.", path=file.shown, rule="at least one conversation",
                            hint="Name its format with collect.format=…, or leave the file out.")  # fmt: skip
        read = account.read - before
        account.sources.append({"file": file.shown, "format": reader.name, "read": read, "dialogs": kept, "dropped": read - kept})


def reader_of(file: SourceFile, wanted: Wanted) -> Reader:
    """The reader for one file."""
    if file.format is not None:
        reader: Reader = kind("readers").load(file.format)()  # type: ignore[assignment]
        return reader
    if wanted.format is None:
        return detect(file.path, wanted.encoding)
    return wanted.format if wanted.encoding == "utf-8" else wanted.format.changed(encoding=wanted.encoding)


class _Ids:
    """Ids given out, so that no two dialogs have one."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def own(self, wanted: str) -> str:
        """`wanted`, with a number behind it when another dialog has it."""
        own, number = wanted, self._taken.get(wanted, 0)
        while own in self._taken:
            number += 1
            own = f"{wanted}~{number + 1}"
        self._taken[wanted] = number
        self._taken.setdefault(own, 0)
        return own
