"""Tables of text, comma-, semicolon-, tab- or bar-separated: rows by the names of their columns, each with its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from chattune.dialogs.column_files import refuse_wide, unique
from chattune.dialogs.compressed import Unreadable
from chattune.dialogs.dialog import Drop
from chattune.dialogs.text import lines

DELIMITERS = ",\t;|"
_AGAIN = 64  # times the limit of one record that may be read again after unclosed quotes


def table_rows(file: TextIO, limit: int, shown: str) -> Iterator[tuple[int, dict[str, str]] | Drop]:
    """The rows below the header, with the lines in which they begin; the first line that is not blank is the header.

    A row that breaks the rules of quotes costs its first line only: the lines that an unclosed quote swallowed are read again. An
    `Unreadable` tells a header that cannot be read, or of more columns than a table of conversations has.
    """
    source = _Source(file, limit, shown)
    header = next((text for text in source if text.strip() and not text.lower().startswith("sep=")), "")
    for drop in source.drops():  # the rows below would be read by the names of another
        raise Unreadable(
            f"its header cannot be read: {drop.detail}.", drop.reason, path=f"{shown}:{drop.line}", rule="a first line of column names",
            hint="Mend that line, or leave the file out.",
        )
    delimiter = delimiter_of(header)
    refuse_wide(header.count(delimiter) + 1, Path(shown))
    names = unique(_next(csv.reader([header], delimiter=delimiter), limit) or [])
    rows = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.forget()
        try:
            row = _next(rows, limit)
        except csv.Error as error:
            line, end = source.first, source.last
            detail = f"line {line} is left out" if source.again() else f"lines {line} to {end} are left out"
            broken = Drop("broken_csv", shown, line, f"{error}; {detail}")
            yield from sorted([*source.drops(), broken], key=lambda drop: drop.line)
            continue
        yield from source.drops()
        if row is None:
            return
        if not any(map(str.strip, row)):
            continue
        if len(row) != len(names):
            yield Drop("wrong_columns", shown, source.first, f"{len(row)} fields, the header has {len(names)}")
        else:
            yield source.first, {name: value for name, value in zip(names, row, strict=True) if name}


def delimiter_of(header: str) -> str:
    """What parts the columns: the mark that a header has most often."""
    return max(DELIMITERS, key=header.count)


class _Source(Iterator[str]):
    """Lines for the csv module, which knows those that the present row has taken and can give them again but for the first."""

    def __init__(self, file: TextIO, limit: int, shown: str) -> None:
        self._lines, self._limit = lines(file, limit, shown), limit
        self._taken: list[tuple[int, str]] = []
        self._waiting: list[tuple[int, str]] = []  # the next one last
        self._drops: list[Drop] = []
        self._length = self._read_again = 0

    def __next__(self) -> str:
        if self._length > self._limit:
            raise csv.Error("the row goes on beyond the limit")
        if self._waiting:
            item = self._waiting.pop()
        else:
            while isinstance(found := next(self._lines), Drop):
                self._drops.append(found)
            item = found
        self._taken.append(item)
        self._length += len(item[1])
        return item[1] + "\n"

    @property
    def first(self) -> int:
        """The line in which the row begins."""
        return self._taken[0][0] if self._taken else 1

    @property
    def last(self) -> int:
        """The last line that the row has taken."""
        return self._taken[-1][0] if self._taken else 1

    def forget(self) -> None:
        """A new row begins."""
        self._taken.clear()
        self._length = 0

    def again(self) -> bool:
        """Give the row's lines but the first once more; not where that has been done too often."""
        rest = self._taken[1:]
        self._read_again += sum(len(text) for _, text in rest)
        if self._read_again > _AGAIN * self._limit:
            return False
        self._waiting.extend(reversed(rest))
        return True

    def drops(self) -> list[Drop]:
        """Lines that could not be read, since the last call."""
        found, self._drops = self._drops, []
        return found


def _next(rows: Iterator[list[str]], limit: int) -> list[str] | None:
    usual = csv.field_size_limit(limit)  # the csv module keeps it for the whole process
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(usual)
