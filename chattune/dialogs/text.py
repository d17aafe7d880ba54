"""Text of source files: packed or plain, byte order marks, line ends and encodings; bounded lines and JSON records with their numbers.

Line ends are read as ``\\n`` whatever they were. Nothing longer than a reader's `record_limit` is ever held in memory. Where a file
breaks off within a character, that one becomes U+FFFD and everything before it is kept. Bytes that the encoding does not allow cost
the line, or the record, in which they stand; where most of the lines that hold more than ASCII fail, the encoding is the wrong one.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from chattune.core.files import size
from chattune.dialogs.compressed import Unreadable, foreign, opened, workbook_of
from chattune.dialogs.dialog import Drop
from chattune.dialogs.json_stream import BLANK, BLOCK, CLOSED, DECODER, JsonStream, short

HEAD = 64 * 1024  # characters that detection looks at
_LOST_BYTES = "chattune-lost-bytes"
_LOST = re.compile("[\ud800-\udfff]")
_STRAY = 5  # lines that an accident may spoil: a pasted word of another encoding
_LONGEST_FIRST = 2**24  # characters in which detection looks for the end of the first JSON record
_CERTAIN = 1000  # failed lines after which a file is given up, if most fail
_WIDE = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@contextlib.contextmanager
def reading(path: Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    """The text of a file, packed or plain, or of a file in an archive; a Parquet, Arrow or Excel file as JSON Lines.

    A `DataError` says with file and line why it cannot be read. Bytes that `encoding` does not allow come as the characters U+DC00 to
    U+DCFF: `lines` and `json_records` tell them, whoever reads text itself calls `legible`.
    """
    from chattune.dialogs.column_files import as_json_lines

    codecs.register_error(_LOST_BYTES, _lost_bytes)
    with contextlib.ExitStack() as open_files:
        if workbook_of(path):
            begin = b"PK"
        else:
            file = open_files.enter_context(opened(path))
            begin = file.read(HEAD)
            file.seek(0)
        rows = open_files.enter_context(as_json_lines(path, begin))
        if rows is None:
            _refuse_binary(path, begin, encoding)
        plain: Any = file if rows is None else rows
        decoding = "utf-8-sig" if rows is not None or _is_utf8(encoding) else encoding
        yield io.TextIOWrapper(plain, encoding=decoding, errors=_LOST_BYTES)


def head_of(path: Path, encoding: str = "utf-8") -> str:
    """The beginning of the text, for detection: 64 Ki characters, or as many as the first record of a JSON file needs.

    An empty file is a `DataError`, and so is one of another encoding.
    """
    with reading(path, encoding) as file:
        head = file.read(HEAD)
        while head.lstrip()[:1] in ("{", "[") and len(head) < _LONGEST_FIRST and not sample(head, 1) and (more := file.read(len(head))):
            head += more
        decoding = Decoding(file, str(path))
        written = head.splitlines()
        if len(written) > 1 or head.lstrip()[:1] not in ("{", "["):  # of records in one line each is judged when it is read
            for number, line in enumerate(written, 1):
                decoding.lost(line, number)
            decoding.end()
    if not head.strip():
        raise Unreadable(
            "holds no text.", "empty_file", path=str(path), rule="a file of conversations", hint="Leave it out of collect.sources."
        )
    return _LOST.sub("\ufffd", head)


def legible(text: str, path: Path, encoding: str) -> str:
    """`text` itself, where every byte of it could be read; else a `DataError` with the line of the first that could not."""
    if (lost := _first_lost(text)) is not None:
        place = f"{path}:{text.count(chr(10), 0, lost) + 1}"
        raise _wrong_encoding(place, encoding, text[lost])
    return text


def lines(file: TextIO, limit: int, shown: str) -> Iterator[tuple[int, str] | Drop]:
    """Numbered lines without their ends; told are those longer than `limit` characters, with bytes that cannot be read, or with NUL."""
    number, decoding = 0, Decoding(file, shown)
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith("\n"):
            length = len(line)
            while (rest := file.readline(BLOCK)) and not rest.endswith("\n"):
                length += len(rest)
            yield Drop("line_too_long", shown, number, f"{size(length + len(rest))} in one line; the limit is {size(limit)}")
        elif (lost := decoding.lost(line, number)) is not None:
            yield lost
        elif "\0" in line:
            yield Drop("nul_bytes", shown, number, f"{line.count(chr(0))} bytes of value 0, as a crash leaves them")
        else:
            yield number, line.rstrip("\n")
    decoding.end()


def json_records(file: TextIO, limit: int, shown: str) -> Iterator[tuple[int, Any, str] | Drop]:
    """Every record of a file of JSON: its line, its value and, for the elements of one large object, its key.

    Read are JSON Lines, one list, one object of conversations by their ids, and values printed over several lines. A broken record is
    told and the next is read: the next line, or what stands behind the record's last bracket, or where the next one begins as the
    first did. Only where none of these is found what follows is not read, and that is told.
    """
    layout = _layout(file.read(HEAD))
    file.seek(0)
    if layout != "lines":
        decoding = Decoding(file, shown)
        stream = JsonStream(file, limit, shown, decoding.lost)
        for element in stream.elements("" if layout == "values" else stream.skip(BLANK)):
            if isinstance(element, Drop):
                yield element
            elif element[2] is not CLOSED:
                yield element[1], element[2], element[0]
        decoding.end()
        return
    for item in lines(file, limit, shown):
        if isinstance(item, Drop):
            yield item
        elif item[1].strip(BLANK):
            try:
                yield from ((item[0], value, "") for value in _values(item[1]))
            except (ValueError, RecursionError) as error:
                yield Drop("broken_json", shown, item[0], short(str(error)))


def sample(head: str, count: int = 20) -> list[tuple[Any, str]]:
    """The first whole JSON records of a file's beginning with their keys; empty when it is not JSON."""
    return list(_sampled(head, count))


@functools.lru_cache(maxsize=4)  # every reader asks for the same
def _sampled(head: str, count: int) -> tuple[tuple[Any, str], ...]:
    found: list[tuple[Any, str]] = []
    with contextlib.suppress(Unreadable):  # told by whoever reads the file
        for item in json_records(io.StringIO(head), len(head) + 1, ""):
            if not isinstance(item, Drop):
                found.append((item[1], item[2]))
            if len(found) == count:
                break
    return tuple(found)


def _values(line: str) -> list[Any]:
    """The value that a line holds; the objects, where several stand in it, whether or not commas part them."""
    line = line.strip(BLANK)
    try:
        return [json.loads(line)]
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        found, place = [], 0
        while place < len(line):
            value, place = DECODER.raw_decode(line, place)
            if not isinstance(value, dict):
                raise error from None
            found.append(value)
            place += len(line) - place - len(line[place:].lstrip(BLANK + ","))
        return found


def _layout(head: str) -> str:
    """How JSON stands in a file: ``lines``, ``elements`` of one list or object, or ``values`` printed over several lines."""
    text = head.lstrip(BLANK)
    if text.startswith("["):
        line, _, rest = text.partition("\n")
        return "lines" if line.rstrip().endswith("]") and rest.strip() and _is_row(line, rest) else "elements"
    if not text.startswith("{"):
        return "lines"
    line, newline, _ = text.partition("\n")
    of_objects = re.match(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{', text) is not None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        if newline and not line.rstrip().endswith(("{", "[", ",")):
            return "lines"  # a row that was cut
        return "elements" if of_objects else "values" if newline else "lines"
    return "elements" if row and all(isinstance(value, dict) and "messages" in value for value in row.values()) else "lines"


def _is_row(line: str, rest: str) -> bool:
    """Whether a list in the first line is a row by itself: where the next line begins one, or where it holds no objects."""
    if rest.lstrip().startswith("["):
        return True
    try:
        return not any(isinstance(item, dict) for item in json.loads(line))
    except (ValueError, RecursionError):
        return False


class Decoding:
    """Counts the lines, or records, of a file that hold bytes which its encoding does not allow."""

    def __init__(self, file: TextIO, shown: str) -> None:
        self._encoding = (getattr(file, "encoding", None) or "utf-8").removesuffix("-sig")
        self._shown, self._count, self._wide, self._failed = shown, 0, 0, 0
        self._first: tuple[int, str] | None = None

    def lost(self, text: str, line: int) -> Drop | None:
        """A `Drop` for text that holds such bytes; an error once it is plain that nothing else will come."""
        self._count += 1
        if text.isascii():
            return None
        self._wide += 1
        if (place := _first_lost(text)) is None:
            return None
        self._failed += 1
        self._first = self._first or (line, text[place])
        if self._failed >= _CERTAIN:
            self.end()
        return Drop("undecodable", self._shown, line, f"byte 0x{ord(text[place]) & 0xFF:02x} is not {self._encoding}")

    def end(self) -> None:
        """Tell a wrong encoding: most lines fail, or most of those that are not ASCII and more than an accident would spoil."""
        if self._first and self._failed * 2 > (self._wide if self._failed >= _STRAY else self._count):
            line, character = self._first
            raise _wrong_encoding(f"{self._shown}:{line}", self._encoding, character)


def _wrong_encoding(place: str, encoding: str, character: str) -> Unreadable:
    return Unreadable(
        f"is not {encoding}: byte 0x{ord(character) & 0xFF:02x} cannot be read.", "undecodable", path=place, value=encoding,
        rule=f"text in {encoding}", hint="Name its encoding: collect.encoding=gb18030 (or latin-1, utf-16 …).",
    )


def _first_lost(text: str) -> int | None:
    """The place of the first character that stands for a byte which could not be read."""
    try:
        text.encode()  # many times faster than a search
    except UnicodeEncodeError:
        found = _LOST.search(text)
        return found.start() if found else None
    return None


def _refuse_binary(path: Path, begin: bytes, encoding: str) -> None:
    wide = next((name for mark, name in _WIDE.items() if begin.startswith(mark)), None)
    if _is_utf8(encoding) and wide:
        raise Unreadable(
            f"is {wide.upper()}, not UTF-8.", "undecodable", path=str(path), value=wide, rule="text in utf-8",
            hint=f"Say so: collect.encoding={wide}.",
        )
    kind = foreign(begin)
    if not kind and not encoding.lower().replace("-", "").replace("_", "").startswith(("utf16", "utf32")) and b"\0" in begin:
        pieces = begin.split(b"\n")
        # A log that a crash tore has some lines of zeros; where most lines have one it is no text.
        kind = "" if sum(b"\0" in piece for piece in pieces) * 2 <= len(pieces) else "not text"
    if kind:
        raise Unreadable(
            f"is binary ({kind}).", "binary", path=str(path), rule="a text file, or a table as .parquet or .xlsx",
            hint="Leave it out of collect.sources, or convert it to JSON Lines.",
        )


def known_encoding(name: str) -> str:
    """`name` itself when Python knows such an encoding of text; else a `ValueError` for settings to tell."""
    try:
        "".encode(name)
    except LookupError:
        raise ValueError("should be an encoding that Python knows, such as utf-8, gb18030 or latin-1") from None
    return name


def _lost_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    # Decoders say so only at the very end of the bytes: before it they wait for the rest of the character.
    if error.reason in ("unexpected end of data", "incomplete multibyte sequence", "truncated data"):
        return "\ufffd", error.end
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")

