"""Which reader fits a file: every reader scores its beginning, the surest one reads it."""

from __future__ import annotations

from pathlib import Path

from chattune.core.errors import DataError
from chattune.core.part import kind
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import is_json
from chattune.dialogs.tables import DELIMITERS, table_rows
from chattune.dialogs.text import HEAD, head_of, reading

SURE = 0.3  # below this nothing is recognised
APART = 0.05  # nearer than this, two formats are a tie
_HEADER = 2**24  # characters of a header that is counted


def scores(path: Path, encoding: str = "utf-8") -> dict[str, float]:
    """How sure each reader is of this file, the surest first."""
    head = head_of(path, encoding)
    readers = kind("readers")
    found = {name: readers.load(name)().score(path, head) for name in readers.names()}  # type: ignore[attr-defined]
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def detect(path: Path, encoding: str = "utf-8") -> Reader:
    """The reader for the file at `path`; a `DataError` that names the scores when none, or more than one, fits."""
    found = scores(path, encoding)
    (first, best), (second, next_best) = list(found.items())[:2]
    told = ", ".join(f"{name} {score:.2f}" for name, score in found.items() if score > 0) or "nothing recognised"
    if best < SURE:
        _refuse_endless_header(path, encoding)
        raise DataError(
            f"its format is not recognised ({told}).", path=str(path), value=head_of(path, encoding).strip()[:60],
            rule=f"one of {', '.join(sorted(found))}",
            hint="Name the format: collect.format=transcript (`chattune list readers` shows all).",
        )
    if best - next_best < APART:
        raise DataError(
            f"could be {first} or {second} ({told}).", path=str(path), rule="one format that fits best",
            hint=f"Name the format: collect.format={first}.",
        )
    reader: Reader = kind("readers").load(first).model_validate({"encoding": encoding})  # type: ignore[assignment]
    return reader


def _refuse_endless_header(path: Path, encoding: str) -> None:
    """Tell a table whose first line holds more columns than any of conversations has."""
    head = head_of(path, encoding)
    if "\n" not in head and not is_json(head) and max(map(head.count, DELIMITERS)) > HEAD // 64:
        with reading(path, encoding) as file:
            next(table_rows(file, _HEADER, str(path)), None)
