"""Gathering: every source read, dialogs brought into their normal shape, exact repetitions left out; one dialog in memory at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chattune.core.errors import DataError
from chattune.core.part import kind
from chattune.core.progress import talk
from chattune.dialogs.compressed import Unreadable
from chattune.dialogs.detect import detect
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers import Reader
from chattune.dialogs.shape import MessageCounts, Shaped, content_key, shaped
from chattune.dialogs.sources import SourceFile, source_files

_SAID = 8  # files left out that are told by name; every one stands in the list of what was dropped


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
    left_out: list[Drop] = field(default_factory=list)  # whole files


def read_sources(wanted: Wanted) -> Iterator[Dialog | Drop]:
    """Everything in the sources as it is read, before anything is shaped or left out."""
    for file in source_files(wanted.sources):
        yield from read_file(file, wanted)[1]


def gathered(wanted: Wanted, account: Account) -> Iterator[Dialog | Drop]:
    """Every dialog that is kept, shaped, with an id of its own, and a `Drop` for every other thing that was read.

    A file that cannot be read ends it when it was named itself; one of many, in a folder or archive, is a `Drop`.
    """
    said: dict[bytes, str] = {}
    ids = _Ids()
    for file in source_files(wanted.sources):
        name, items = read_file(file, wanted)
        before, kept = account.read, 0
        for item in items:
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
            if name is None:
                account.left_out.append(replace(found, file=file.shown))
        read = account.read - before
        if name is not None:
            account.sources.append({"file": file.shown, "format": name, "read": read, "dialogs": kept, "dropped": read - kept})
    _say_left_out(account.left_out)


def read_file(file: SourceFile, wanted: Wanted) -> tuple[str | None, Iterator[Dialog | Drop]]:
    """The name of the reader for a file and what it reads; no name, and the one reason, for a file that is left out whole."""
    if file.skip is not None:
        return None, iter([Drop(file.skip[0], file.shown, 1, file.skip[1])])
    try:
        reader = reader_of(file, wanted)
    except DataError as error:
        if not file.among:
            raise
        return None, iter([_drop(file, error)])
    return reader.name, _read(file, reader)


def _read(file: SourceFile, reader: Reader) -> Iterator[Dialog | Drop]:
    some = False
    try:
        for item in reader.read(file.path):
            some = True
            yield item
        if not some:
            raise DataError(f"holds no conversation that {reader.name} can read.", path=file.shown, rule="at least one conversation",
                            hint="Name its format with collect.format=…, or leave the file out.")  # fmt: skip
    except DataError as error:
        if not file.among:
            raise
        yield _drop(file, error)


def _drop(file: SourceFile, error: DataError) -> Drop:
    place = re.search(r":(\d+)$", error.path or "")
    reason = error.reason if isinstance(error, Unreadable) else "unrecognised"
    return Drop(reason, file.shown, int(place[1]) if place else 1, error.message)


def _say_left_out(drops: Sequence[Drop]) -> None:
    for drop in drops[:_SAID]:
        talk().print(f"collect  {drop.file} left out: {drop.detail}", markup=False)
    if len(drops) > _SAID:
        talk().print(f"collect  and {len(drops) - _SAID} more files left out", markup=False)


def reader_of(file: SourceFile, wanted: Wanted) -> Reader:
    """The reader for one file."""
    named = wanted.format
    if file.format is not None and file.path.is_dir() and named is not None and named.name != file.format:
        raise DataError(
            f"is an export of {file.format} as a whole, which {named.name} cannot read.", path=file.shown, value=named.name,
            rule=f"collect.format={file.format}, or none", hint="Leave collect.format out, or name the files in it one by one.",
        )
    if file.format is not None and (named is None or named.name != file.format):
        reader: Reader = kind("readers").load(file.format)()  # type: ignore[assignment]
        return reader
    if named is None:
        return detect(file.path, wanted.encoding)
    return named if wanted.encoding == "utf-8" else named.changed(encoding=wanted.encoding)


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
