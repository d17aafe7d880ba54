"""Text of source files: gzip, byte order marks, line ends and encodings; bounded lines and JSON records with their line numbers.

Line ends are read as ``\\n`` whatever they were. Nothing longer than a reader's `record_limit` is ever held in memory. Where a file
breaks off within a character, that one becomes U+FFFD and everything before it is kept.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from chattune.core.errors import DataError
from chattune.core.files import size
from chattune.dialogs.dialog import Drop

HEAD = 64 * 1024  # characters that detection looks at
_BLOCK = 1 << 20
_BLANK = " \t\r\n\ufeff"
_TORN_END = "chattune-torn-end"
_DECODER = json.JSONDecoder()
_WIDE = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@contextlib.contextmanager
def reading(path: Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    """The text of a file, plain or gzip, or a `DataError` that says with file and line why it cannot be read."""
    try:
        raw = cast(io.BufferedIOBase, path.open("rb"))
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DataError(f"{reason}.", path=str(path), rule="a readable file", hint="Check collect.sources.") from None
    with raw:
        try:
            begin = raw.read(4)
            raw.seek(0)
            plain = cast(io.BufferedIOBase, gzip.GzipFile(fileobj=raw)) if begin[:2] == b"\x1f\x8b" else raw
            _refuse_binary(path, plain, encoding)
            codecs.register_error(_TORN_END, _torn_end)
            yield io.TextIOWrapper(cast(Any, plain), encoding="utf-8-sig" if _is_utf8(encoding) else encoding, errors=_TORN_END)
        except UnicodeDecodeError as error:
            place = f"{path}:{_undecodable(path, encoding)}"
            raise DataError(
                f"is not {encoding}: byte 0x{error.object[error.start]:02x} cannot be read.", path=place, value=encoding,
                rule=f"text in {encoding}", hint="Name its encoding: collect.encoding=gb18030 (or latin-1, utf-16 …).",
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"is a damaged gzip file: {str(error).rstrip('.')}.", path=str(path), rule="a whole gzip file",
                hint="Fetch or compress it again.",
            ) from None


def head_of(path: Path, encoding: str = "utf-8") -> str:
    """The beginning of the text, for detection; an empty file is a `DataError`."""
    with reading(path, encoding) as file:
        head = file.read(HEAD)
    if not head.strip():
        raise DataError("holds no text.", path=str(path), rule="a file of conversations", hint="Leave it out of collect.sources.")
    return head


def lines(file: TextIO, limit: int, shown: str) -> Iterator[tuple[int, str] | Drop]:
    """Numbered lines without their ends; one longer than `limit` characters is skipped and told."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith("\n"):
            length = len(line)
            while (rest := file.readline(_BLOCK)) and not rest.endswith("\n"):
                length += len(rest)
            yield Drop("line_too_long", shown, number, f"{size(length + len(rest))} in one line; the limit is {size(limit)}")
            continue
        yield number, line.rstrip("\n")


def json_records(file: TextIO, limit: int, shown: str) -> Iterator[tuple[int, Any, str] | Drop]:
    """Every record of a file of JSON: its line, its value and, for the elements of one large object, its key.

    Read are JSON Lines, one list, one object of conversations by their ids, and values printed over several lines. A broken line is
    told and the next is read; in the other layouts what stands before the break is kept: where the next begins cannot be known.
    """
    layout = _layout(file.read(HEAD))
    file.seek(0)
    if layout != "lines":
        yield from _elements(_Window(file), limit, shown, bare=layout == "values")
        return
    for item in lines(file, limit, shown):
        if isinstance(item, Drop):
            yield item
        elif item[1].strip():
            try:
                yield item[0], json.loads(item[1]), ""
            except (ValueError, RecursionError) as error:
                yield Drop("broken_json", shown, item[0], _short(str(error)))


def sample(head: str, count: int = 20) -> list[tuple[Any, str]]:
    """The first whole JSON records of a file's beginning with their keys; empty when it is not JSON."""
    found: list[tuple[Any, str]] = []
    for item in json_records(io.StringIO(head), len(head) + 1, ""):
        if not isinstance(item, Drop):
            found.append((item[1], item[2]))
        elif not found:
            break
        if len(found) == count:
            break
    return found


def _layout(head: str) -> str:
    """How JSON stands in a file: ``lines``, ``elements`` of one list or object, or ``values`` printed over several lines."""
    text = head.lstrip()
    if text.startswith("["):
        return "elements"
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


class _TooLong(ValueError):
    """A record that does not end within the limit."""


class _Window:
    """A stretch of a file's text that grows on demand and forgets what was used; counts lines as it goes."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.place, self.line = file, "", 0, 1
        self.used = 0  # characters of the last value

    def grow(self) -> bool:
        more = self.file.read(max(_BLOCK, len(self.text) - self.place))
        self.text = self.text[self.place :] + more
        self.place = 0
        return bool(more)

    def skip(self, characters: str) -> str:
        """Pass over any of `characters`; the next character, or nothing at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in characters:
                self.line += self.text[self.place] == "\n"
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.grow():
                return ""

    def expect(self, mark: str) -> None:
        """Pass over `mark`, or a `ValueError`."""
        if self.skip(_BLANK) != mark:
            raise ValueError(f"'{mark}' expected")
        self.place += 1

    def value(self, limit: int) -> Any:
        """The JSON value that begins here; `ValueError` when it is broken, `_TooLong` when no end is found within `limit`."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.place > limit:
                    raise _TooLong(f"no record ends within {size(limit)}") from None
                if not self.grow():
                    raise ValueError(str(error)) from None
                continue
            if end == len(self.text) and self.grow():  # a number may go on
                continue
            self.line += self.text.count("\n", self.place, end)
            self.used, self.place = end - self.place, end
            return value


def _elements(window: _Window, limit: int, shown: str, *, bare: bool) -> Iterator[tuple[int, Any, str] | Drop]:
    """The elements of one list or object; `bare`: values one after the other, with nothing around them."""
    opening = "" if bare else window.skip(_BLANK)
    window.place += not bare
    closing = {"[": "]", "{": "}", "": ""}[opening]
    try:
        while (mark := window.skip(_BLANK)) != closing:
            line, key = window.line, ""
            if not mark:
                raise ValueError("the file ends before its list or object does")
            if opening == "{":
                key = str(window.value(limit))
                window.expect(":")
                window.skip(_BLANK)
            value = window.value(limit)
            if window.used > limit:
                yield Drop("line_too_long", shown, line, f"a record of {size(window.used)}; the limit is {size(limit)}")
            else:
                yield line, value, key
            if opening and window.skip(_BLANK) != closing:
                window.expect(",")
        window.place += not bare
        if window.skip(_BLANK):
            raise ValueError("more text after the end of the list or object")
    except _TooLong as error:
        yield Drop("line_too_long", shown, window.line, _short(f"{error}; what follows in this file was not read"))
    except ValueError as error:
        yield Drop("broken_json", shown, window.line, _short(f"{error}; what follows in this file was not read"))


def _refuse_binary(path: Path, plain: io.BufferedIOBase, encoding: str) -> None:
    begin = plain.read(HEAD)
    plain.seek(0)
    wide = next((name for mark, name in _WIDE.items() if begin.startswith(mark)), None)
    if _is_utf8(encoding) and wide:
        raise DataError(
            f"is {wide.upper()}, not UTF-8.", path=str(path), value=wide, rule="text in utf-8",
            hint=f"Say so: collect.encoding={wide}.",
        )
    if not encoding.lower().replace("-", "").replace("_", "").startswith(("utf16", "utf32")) and b"\0" in begin:
        raise DataError(
            "is binary.", path=str(path), rule="a text file", hint="Leave it out of collect.sources, or convert it to JSON Lines."
        )


def known_encoding(name: str) -> str:
    """`name` itself when Python knows such an encoding of text; else a `ValueError` for settings to tell."""
    try:
        "".encode(name)
    except LookupError:
        raise ValueError("should be an encoding that Python knows, such as utf-8, gb18030 or latin-1") from None
    return name


def _torn_end(error: UnicodeError) -> tuple[str, int]:
    # Decoders say so only at the very end of the bytes: before it they wait for the rest of the character.
    breaks_off = ("unexpected end of data", "incomplete multibyte sequence", "truncated data")
    if isinstance(error, UnicodeDecodeError) and error.reason in breaks_off:
        return "\ufffd", error.end
    raise error


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _undecodable(path: Path, encoding: str) -> int:
    """Number of the line that holds the first byte that cannot be read."""
    with path.open("rb") as raw:
        begin = raw.read(2)
        raw.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        number = 1
        for line in cast(io.BufferedIOBase, gzip.GzipFile(fileobj=raw)) if begin == b"\x1f\x8b" else raw:
            try:
                number += decoder.decode(line).count("\n")
            except UnicodeDecodeError:
                break
        return number


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
