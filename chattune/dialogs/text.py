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

HEAD = 64 * 1024  # characters that detection looks at
_BLOCK = 1 << 20
_BLANK = " \t\r\n\ufeff"
_LOST_BYTES = "chattune-lost-bytes"
_LOST = re.compile("[\ud800-\udfff]")
_STRAY = 5  # lines that an accident may spoil: a pasted word of another encoding
_LONGEST_FIRST = 2**24  # characters in which detection looks for the end of the first JSON record
_UNREAD = "; what follows in this file was not read"
_MARK = re.compile(r'\\.|["{}\[\],]', re.DOTALL)
_CERTAIN = 1000  # failed lines after which a file is given up, if most fail
_DECODER = json.JSONDecoder()
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
        decoding = _Decoding(file, str(path))
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
    number, decoding = 0, _Decoding(file, shown)
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith("\n"):
            length = len(line)
            while (rest := file.readline(_BLOCK)) and not rest.endswith("\n"):
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
        yield from _elements(_Window(file), limit, shown, bare=layout == "values")
        return
    for item in lines(file, limit, shown):
        if isinstance(item, Drop):
            yield item
        elif item[1].strip(_BLANK):
            try:
                yield from ((item[0], value, "") for value in _values(item[1]))
            except (ValueError, RecursionError) as error:
                yield Drop("broken_json", shown, item[0], _short(str(error)))


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
    line = line.strip(_BLANK)
    try:
        return [json.loads(line)]
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        found, place = [], 0
        while place < len(line):
            value, place = _DECODER.raw_decode(line, place)
            if not isinstance(value, dict):
                raise error from None
            found.append(value)
            place += len(line) - place - len(line[place:].lstrip(_BLANK + ","))
        return found


def _layout(head: str) -> str:
    """How JSON stands in a file: ``lines``, ``elements`` of one list or object, or ``values`` printed over several lines."""
    text = head.lstrip(_BLANK)
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
                if not _unfinished(error, len(self.text)):
                    raise ValueError(str(error)) from None
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

    def begins(self) -> str:
        """The line up to here with the end of the one before, and one character more; nothing where text stands before this place."""
        newline = self.text.rfind("\n", 0, self.place)
        return self.text[newline : self.place + 1] if newline >= 0 and not self.text[newline : self.place].strip(_BLANK) else ""

    def past_broken(self, limit: int, ends: str, begins: str) -> bool:
        """Pass over a broken record: behind its last bracket, if one of `ends` follows, or to the line that begins as `begins`."""
        while True:
            end, _, _ = _record_end(self.text, self.place, 0, quoted=False)
            following = self.text[end:].lstrip(_BLANK)[:1] if end >= 0 else ""
            if following and following in ends and end > self.place:
                self._go(end)
                return True
            if following or len(self.text) - self.place > limit or not self.grow():
                break
        if end > self.place and not following:  # the file ends behind it
            self._go(end)
            return True
        while begins and (place := self.text.find(begins, self.place)) < 0:
            if len(self.text) - self.place > limit or not self.grow():
                return False
        if begins:
            self._go(place + len(begins) - 1)
        return bool(begins)

    def past_long(self) -> bool:
        """Pass over a record that is too long to be held, to behind its last bracket."""
        depth, quoted = 0, False
        while True:
            end, depth, quoted = _record_end(self.text, self.place, depth, quoted=quoted)
            if end >= 0:
                self._go(end)
                return True
            self._go(len(self.text) - self.text.endswith("\\"))  # what it escapes is still to come
            if not self.grow():
                return False

    def _go(self, place: int) -> None:
        self.line += self.text.count("\n", self.place, place)
        self.place = place


def _record_end(text: str, place: int, depth: int, *, quoted: bool) -> tuple[int, int, bool]:
    """Where the record ends that goes on at `place`, `depth` brackets deep: before a comma or a bracket of what is around it, or behind
    its own last bracket; -1 where that is not in `text`. And how deep it is then, and whether within a string."""
    for match in _MARK.finditer(text, place):
        mark = match[0]
        if mark == '"':
            quoted = not quoted
        elif quoted or mark[0] == "\\":
            continue
        elif mark in "{[":
            depth += 1
        elif mark == ",":
            if depth == 0:
                return match.start(), depth, quoted
        else:
            depth -= 1
            if depth <= 0:
                return match.end() if depth == 0 else match.start(), depth, quoted
    return -1, depth, quoted


def _unfinished(error: Exception, length: int) -> bool:
    """Whether a JSON text of `length` characters may be whole when more of it is read."""
    return isinstance(error, json.JSONDecodeError) and (error.msg.startswith("Unterminated string") or error.pos >= length - 12)


def _elements(window: _Window, limit: int, shown: str, *, bare: bool) -> Iterator[tuple[int, Any, str] | Drop]:
    """The elements of lists or objects; `bare`: values one after the other, with nothing around them. Commas are not insisted on."""
    opening = "" if bare else window.skip(_BLANK)
    window.place += not bare
    decoding = _Decoding(window.file, shown)
    closing = {"[": "]", "{": "}", "": ""}[opening]
    begins, inside = "", True  # how a record's line begins
    while (mark := window.skip(_BLANK)) != "" or opening:
        line, key = window.line, ""
        if mark == "":
            if inside:
                yield Drop("broken_json", shown, line, "the file ends before its list or object does")
            break
        if mark in (",", closing):
            window.place += 1
            inside = mark == ","
            if mark == closing and window.skip(_BLANK) == opening:  # one list behind the other
                window.place += 1
                inside = True
            continue
        begins = begins or window.begins()
        try:
            if opening == "{":
                key = str(window.value(limit))
                window.expect(":")
                window.skip(_BLANK)
            value = window.value(limit)
        except _TooLong as error:
            found = window.past_long()
            yield Drop("line_too_long", shown, line, _short(f"{error}{'' if found else _UNREAD}"))
        except ValueError as error:
            found = window.past_broken(limit, f",{closing}{mark}", begins)
            yield Drop("broken_json", shown, line, _short(f"{error}{'' if found else _UNREAD}"))
        else:
            found = True
            if window.used > limit:
                yield Drop("line_too_long", shown, line, f"a record of {size(window.used)}; the limit is {size(limit)}")
            elif (lost := decoding.lost(window.text[window.place - window.used : window.place], line)) is not None:
                yield lost
            else:
                yield line, value, key
        if not found:
            break
    decoding.end()


class _Decoding:
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


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
