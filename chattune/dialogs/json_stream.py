"""JSON of any size, read value by value: what is broken or too long costs itself alone, and no more than one value is held.

Which lists are gone through is for the caller to say; bytes that cannot be read are told by `text.Decoding`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from chattune.core.files import size
from chattune.dialogs.dialog import Drop

BLANK = " \t\r\n\ufeff"
BLOCK = 1 << 20  # characters read at once
DECODER = json.JSONDecoder()
ENTERED = object()  # stands for the value of a list or object that is gone through
CLOSED = object()  # stands where a list or object has ended

_UNREAD = "; what follows in this file was not read"
_MARK = re.compile(r'\\.|["{}\[\],]', re.DOTALL)
_CLOSING = {"[": "]", "{": "}", "": ""}


def in_no_case(key: str) -> bool:
    """No element is gone through: each is read whole."""
    return False


class JsonStream:
    """A stretch of a file's text that grows on demand and forgets what was used; counts lines as it goes.

    `limit`: characters that one value may have; `lost(text, line)` tells of bytes in a value that could not be read.
    """

    def __init__(self, file: TextIO, limit: int, shown: str, lost: Callable[[str, int], Drop | None]) -> None:
        self.line = 1
        self._file, self._limit, self._shown, self._lost = file, limit, shown, lost
        self._text, self._place = "", 0
        self._used = 0  # characters of the last value
        self._abandoned = False

    @property
    def ahead(self) -> str:
        """What is held of the text from here on."""
        return self._text[self._place :]

    def skip(self, characters: str) -> str:
        """Pass over any of `characters`; the next character, or nothing at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in characters:
                self.line += self._text[self._place] == "\n"
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._grow():
                return ""

    def abandon(self) -> None:
        """Read no more of the file."""
        self._text, self._place, self._abandoned = "", 0, True

    def elements(self, opening: str, enters: Callable[[str], bool] = in_no_case) -> Iterator[tuple[str, int, Any] | Drop]:
        """The elements of a list or object that begins here, each with its key (nothing in a list), its line and its value.

        `opening`: its bracket; nothing for values one after the other, with nothing around them. A list or object whose key
        `enters` names has the value `ENTERED`: whoever asked reads its elements before the next of these. `CLOSED` stands at the
        closing bracket; who goes on gets what stands behind it, the elements of a next list too. Commas are not insisted on. A
        broken element is told and the next is read: what stands behind its last bracket, or where a line begins as that of the
        first element did. Where neither is found the rest of the file is not read, and that is told.
        """
        closing, inside, begins = _CLOSING[opening], True, ""  # `begins`: how an element's line begins
        self._place += len(opening)
        while (mark := self.skip(BLANK)) != "" or opening:
            line, key = self.line, ""
            if mark == "":
                if inside:
                    yield Drop("broken_json", self._shown, line, "the file ends before its list or object does")
                return
            if mark in (",", closing):
                self._place += 1
                inside = mark == ","
                if mark == closing:
                    yield "", line, CLOSED
                    if self.skip(BLANK) == opening:  # one list behind the other
                        self._place += 1
                        inside = True
                continue
            begins = begins or self._begins()
            try:
                if opening == "{":
                    key = str(self._value())
                    self._expect(":")
                if enters(key) and self.skip(BLANK) in ("[", "{"):
                    yield key, line, ENTERED
                    continue
                self.skip(BLANK)
                value = self._value()
            except _TooLong as error:
                found = self._past_long()
                yield Drop("line_too_long", self._shown, line, short(f"{error}{'' if found else _UNREAD}"))
            except ValueError as error:
                found = self._past_broken(f",{closing}{mark}", begins)
                yield Drop("broken_json", self._shown, line, short(f"{error}{'' if found else _UNREAD}"))
            else:
                found = True
                if self._used > self._limit:
                    detail = f"a record of {size(self._used)}; the limit is {size(self._limit)}"
                    yield Drop("line_too_long", self._shown, line, detail)
                elif (lost := self._lost(self._text[self._place - self._used : self._place], line)) is not None:
                    yield lost
                else:
                    yield key, line, value
            if not found:
                self.abandon()
                return

    def unread(self, detail: str) -> Drop:
        """`detail`, and that nothing more of the file is read."""
        return Drop("broken_json", self._shown, self.line, f"{detail}{_UNREAD}")

    def _grow(self) -> bool:
        more = "" if self._abandoned else self._file.read(max(BLOCK, len(self._text) - self._place))
        self._text = self._text[self._place :] + more
        self._place = 0
        return bool(more)

    def _expect(self, mark: str) -> None:
        if self.skip(BLANK) != mark:
            raise ValueError(f"'{mark}' expected")
        self._place += 1

    def _value(self) -> Any:
        """The JSON value that begins here; `ValueError` when it is broken, `_TooLong` when no end is found within the limit."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._place)
            except (ValueError, RecursionError) as error:
                if not _unfinished(error, len(self._text)):
                    raise ValueError(str(error)) from None
                if len(self._text) - self._place > self._limit:
                    raise _TooLong(f"no record ends within {size(self._limit)}") from None
                if not self._grow():
                    raise ValueError(str(error)) from None
                continue
            if end == len(self._text) and self._grow():  # a number may go on
                continue
            self.line += self._text.count("\n", self._place, end)
            self._used, self._place = end - self._place, end
            return value

    def _begins(self) -> str:
        """The line up to here with the end of the one before, and one character more; nothing where text stands before this place."""
        newline = self._text.rfind("\n", 0, self._place)
        if newline < 0 or self._text[newline : self._place].strip(BLANK):
            return ""
        return self._text[newline : self._place + 1]

    def _past_broken(self, ends: str, begins: str) -> bool:
        """Pass over a broken record: behind its last bracket, if one of `ends` follows, or to the line that begins as `begins`."""
        while True:
            end, _, _ = _record_end(self._text, self._place, 0, quoted=False)
            following = self._text[end:].lstrip(BLANK)[:1] if end >= 0 else ""
            if following and following in ends and end > self._place:
                self._go(end)
                return True
            if following or len(self._text) - self._place > self._limit or not self._grow():
                break
        if end > self._place and not following:  # the file ends behind it
            self._go(end)
            return True
        while begins and (place := self._text.find(begins, self._place)) < 0:
            if len(self._text) - self._place > self._limit or not self._grow():
                return False
        if begins:
            self._go(place + len(begins) - 1)
        return bool(begins)

    def _past_long(self) -> bool:
        """Pass over a record that is too long to be held, to behind its last bracket."""
        depth, quoted = 0, False
        while True:
            end, depth, quoted = _record_end(self._text, self._place, depth, quoted=quoted)
            if end >= 0:
                self._go(end)
                return True
            self._go(len(self._text) - self._text.endswith("\\"))  # what it escapes is still to come
            if not self._grow():
                return False

    def _go(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place


class _TooLong(ValueError):
    """A record that does not end within the limit."""


def short(text: str, limit: int = 200) -> str:
    """The beginning of `text`, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


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
