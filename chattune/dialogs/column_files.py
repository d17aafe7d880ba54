"""Tables that are not text: Parquet, Arrow and Excel files, given as JSON Lines so that every reader of rows reads them.

One row is one line and has its number; a workbook's lines have the numbers of its rows, the first that is filled names the columns.
Rows are read a few at a time. Values that JSON lacks become text: times in ISO 8601, decimals as they are written.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from chattune.core.errors import ChattuneError
from chattune.core.files import size
from chattune.dialogs.byte_files import Rewindable
from chattune.dialogs.compressed import Unreadable, is_zip, refuse_bomb, seekable, workbook_of

COLUMNS = 16_384  # what a sheet of Excel can have at the most; a table of more is not one of conversations
_ROWS = 32  # rows in memory at once
_SHEET_ROWS = 1_048_576  # rows of a sheet, by Excel's own limit
_WHOLE = {"xl/sharedStrings.xml": 2**28, "": 2**25}  # bytes of a workbook's parts that are read whole; sheets are read row by row


def needed(package: str, what: str) -> Any:
    """An optional package, or an error with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        base = package.partition(".")[0]
        raise ChattuneError(
            f"{what} are read by the package {base}, which is not installed.", path="collect.sources", value=base,
            rule="an installed reader", hint=f"Install it: pip install {base} (pip install chattune[tables] brings all of them).",
        ) from None


@contextlib.contextmanager
def as_json_lines(path: Path, begin: bytes) -> Iterator[BinaryIO | None]:
    """The rows of the table at `path` as JSON Lines in UTF-8; none when a file that begins like `begin` is not such a table."""
    book = workbook_of(path)
    read = _reader(begin, path, book[1] if book else None)
    if read is None:
        yield None
        return
    with seekable(book[0] if book else path) as file, io.BufferedReader(_Lines(lambda: read(file))) as rows:
        yield rows


def sheets(path: Path) -> list[str]:
    """The names of the sheets of a workbook that hold something."""
    with _telling(path, "workbook of Excel"), seekable(path) as file, _workbook(file, path) as book:
        return [_name(sheet) for sheet in book.worksheets if _header(sheet)]


def _reader(begin: bytes, path: Path, sheet: str | None) -> Callable[[BinaryIO], Generator[bytes]] | None:
    if sheet is not None or is_zip(begin):
        return lambda file: _excel(file, path, sheet)
    if begin.startswith(b"PAR1"):
        return lambda file: _parquet(file, path)
    if begin.startswith((b"ARROW1\0\0", b"\xff\xff\xff\xff")):
        return lambda file: _arrow(file, path, stream=not begin.startswith(b"ARROW1"))
    return None


class _Lines(Rewindable):
    """Lines of bytes as a file."""

    def __init__(self, begin: Callable[[], Generator[bytes]]) -> None:
        self._begin, self._lines = begin, begin()
        self._rest = memoryview(b"")  # of the line that is being given

    def rewind(self) -> None:
        self._lines, self._rest, self.count = self._begin(), memoryview(b""), 0

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._lines, b""))
        given, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(given)] = given
        self.count += len(given)
        return len(given)

    def close(self) -> None:
        self._lines.close()
        super().close()


def _line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
        return f"<{len(value)} bytes>"
    return value.isoformat(sep=" ") if hasattr(value, "hour") and hasattr(value, "year") else str(value)


# ------------------------------------------------------------------------------------------------------ Parquet and Arrow


def _parquet(file: BinaryIO, path: Path) -> Generator[bytes]:
    parquet = needed("pyarrow.parquet", "Parquet files")
    with _telling(path, "Parquet file"):
        file.seek(0, io.SEEK_END)
        packed = file.tell()
        table = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        refuse_wide(len(table.schema_arrow.names), path)
        groups = (table.metadata.row_group(group).total_byte_size for group in range(table.metadata.num_row_groups))
        refuse_bomb(sum(groups), packed, path)
        for batch in table.iter_batches(_ROWS, use_threads=False):
            yield from _rows(batch)


def _arrow(file: BinaryIO, path: Path, *, stream: bool) -> Generator[bytes]:
    ipc = needed("pyarrow.ipc", "Arrow files")
    with _telling(path, "Arrow file"):
        file.seek(0)
        if stream:
            with ipc.open_stream(file) as batches:
                refuse_wide(len(batches.schema.names), path)
                for batch in batches:
                    yield from _rows(batch)
        else:
            with ipc.open_file(file) as listed:
                refuse_wide(len(listed.schema.names), path)
                for number in range(listed.num_record_batches):
                    yield from _rows(listed.get_batch(number))


def _rows(batch: Any) -> Iterator[bytes]:
    import pyarrow as pa

    for place, name in enumerate(batch.schema.names):
        if pa.types.is_timestamp(kind := batch.schema.types[place]) and kind.unit == "ns":  # Python has no nanoseconds
            batch = batch.set_column(place, name, batch.column(place).cast(pa.timestamp("us", kind.tz), safe=False))
    for start in range(0, batch.num_rows, _ROWS):
        some = batch.slice(start, _ROWS)
        try:
            rows = [_line(row) for row in some.to_pylist()]
        except UnicodeDecodeError:
            rows = [_row_or_mark(some.slice(place, 1)) for place in range(some.num_rows)]
        yield from rows


def _row_or_mark(one: Any) -> bytes:
    try:
        return _line(one.to_pylist()[0])
    except UnicodeDecodeError:
        return b"\xff\n"  # a line that is told as not decodable, as it is


# ------------------------------------------------------------------------------------------------------------------ Excel


def _excel(file: BinaryIO, path: Path, sheet: str | None) -> Generator[bytes]:
    with _telling(path, "workbook of Excel"), _workbook(file, path) as book:
        chosen = [own for own in book.worksheets if _header(own) and sheet in (None, _name(own))]
        if len(chosen) > 1:
            held = ", ".join(own.title for own in chosen)
            raise Unreadable(
                f"is a workbook of {len(chosen)} sheets, not one.", "several_files", path=str(path), rule="one sheet",
                hint=f"Save each sheet by itself, or take the workbook out of its archive (it holds {held[:120]}).",
            )
        if not chosen:
            return
        names: list[str] = []
        header = _header(chosen[0])
        for number, cells in enumerate(_cells(chosen[0]), 1):
            if number < header:
                yield b"\n"
            elif number == header:
                refuse_wide(len(cells), path)
                names = unique([_shown(cell) or "" for cell in cells])
                yield b"\n"
            else:
                row = {name: text for name, cell in zip(names, cells, strict=False) if name and (text := _shown(cell)) is not None}
                extra = [text for cell in cells[len(names) :] if (text := _shown(cell)) is not None]
                yield _line({**row, "": extra} if extra else row) if row or extra else b"\n"


@contextlib.contextmanager
def _workbook(file: BinaryIO, path: Path) -> Iterator[Any]:
    import zipfile

    openpyxl = needed("openpyxl", "workbooks of Excel")
    file.seek(0, io.SEEK_END)
    packed = file.tell()
    file.seek(0)
    with zipfile.ZipFile(file) as zipped:
        inside = zipped.infolist()
    refuse_bomb(sum(entry.file_size for entry in inside), packed, path)
    for entry in inside:
        allowed = _WHOLE.get(entry.filename, _WHOLE[""])
        if entry.file_size > allowed and not entry.filename.startswith(("xl/worksheets/", "xl/media/")):
            raise Unreadable(
                f"has a part {entry.filename[:60]} of {size(entry.file_size)}.", "bomb", path=str(path), value=entry.file_size,
                rule=f"parts of at most {size(allowed)}, which must fit in memory", hint="Save it as CSV, which is read row by row.",
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and extensions that hold no text
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        try:
            yield book
        finally:
            book.close()


def _cells(sheet: Any) -> Iterator[tuple[Any, ...]]:
    if hasattr(sheet, "reset_dimensions"):
        sheet.reset_dimensions()  # what a sheet says of its own size is often wrong
    yield from sheet.iter_rows(max_row=_SHEET_ROWS, values_only=True)


def _header(sheet: Any) -> int:
    """The number of the row that names the columns: of the first twenty that hold anything the first that fills two cells, else the
    first; 0 for an empty sheet."""
    filled = ((number, count) for number, cells in enumerate(_cells(sheet), 1) if (count := sum(map(bool, map(_shown, cells)))))
    begin = list(itertools.islice(filled, 20))
    return next((number for number, count in begin if count > 1), begin[0][0] if begin else 0)


def _name(sheet: Any) -> str:
    return str(sheet.title).replace("/", "∕")  # a slash would lead into a folder


def _shown(value: Any) -> str | None:
    """A cell as people see it; none for an empty one."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    text = str(_plain(value)) if not isinstance(value, (str, bool, int, float)) else str(value)
    return text if text.strip() else None


def unique(names: Sequence[str]) -> list[str]:
    """Column names without white space around them, a number behind one that was there before; nameless columns stay nameless."""
    found: list[str] = []
    seen: set[str] = set()
    for name in map(str.strip, names):
        own, number = name, 1
        while own and own in seen:
            number += 1
            own = f"{name}~{number}"
        seen.add(own)
        found.append(own)
    return found


def refuse_wide(count: int, path: Path) -> None:
    """Refuse a table of more columns than one of conversations can have."""
    if count > COLUMNS:
        raise Unreadable(
            f"has {count} columns.", "too_many_columns", path=str(path), value=count, rule=f"at most {COLUMNS} columns",
            hint="Is this a table of conversations? Keep the columns of speaker and text.",
        )


@contextlib.contextmanager
def _telling(path: Path, form: str) -> Iterator[None]:
    """Turn what the packages raise at a damaged file, which may be anything, into an error of ours."""
    try:
        yield
    except ChattuneError:
        raise
    except (Exception, MemoryError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:160].rstrip(".")
        raise Unreadable(
            f"is a damaged {form}: {said}.", "damaged", path=str(path), rule="a whole file", hint="Fetch or save it again."
        ) from None
