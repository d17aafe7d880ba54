"""Plain text: books, articles, pages, to learn the language from before chats."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import first_rows, kind_of, records
from chattune.dialogs.shape import TEXT
from chattune.dialogs.text import HEAD, lines, reading

_ENDS = re.compile(r"[.!?。！？…]['\"”’」』)]*\s*|\n")


class PlainText(Reader):
    """Any text, or rows of JSON or a table with a text column: each piece is one message of the assistant and nobody asks.

    Helps when: a model is trained from scratch and chats alone are too little text.   Hurts when: it outweighs the chats: the
    model then goes on writing where it should answer.
    Cost: one piece in memory.   Start with: pieces by document and a length of a few times the model's context.
    Source: pre-training on running text before conversations (GPT, Radford et al. 2018). Nothing is taken for plain text by
    itself: this format must be named, since every log and every table is text, too.
    """

    piece: Literal["document", "paragraph", "line"] = setting(
        "document", "what makes a piece: a whole file (or what stands between separators), text between empty lines, or a line"
    )
    separator: str | None = setting(None, "a line that parts documents, such as % or <|endoftext|>; none: a file is one document")
    length: int = setting(20_000, "characters of the longest piece; cut where a paragraph, line or sentence ends", low=100)
    key: str = setting("text", "the key, or the column, that holds the text, where a file has rows")

    @field_validator("separator")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or "\n" in value):
            raise ValueError("should be one line that is not empty")
        return value

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        with reading(path, self.encoding) as file:
            rows = any(isinstance(row, Mapping) and self.key in row for row in first_rows(file.read(HEAD)))
        number = 0
        for item in self._of_rows(path) if rows else self._of_lines(path):
            if isinstance(item, Drop):
                yield item
                continue
            line, text = item
            number += 1
            messages = (Message("assistant", text),)
            yield Dialog(f"{path.name}#{number}", messages, "plain_text", str(path), line, None, {"kind": TEXT})

    def score(self, path: Path, head: str) -> float:
        return 0.0

    def _of_rows(self, path: Path) -> Iterator[tuple[int, str] | Drop]:
        for item in records(path, self.encoding, self.record_limit):
            if isinstance(item, Drop):
                yield item
                continue
            line, row, _ = item
            value = row.get(self.key) if isinstance(row, Mapping) else None
            if not isinstance(value, str):
                yield Drop("wrong_type", str(path), line, f"'{self.key}' is {kind_of(value)}, not text")
            elif not value.strip():
                yield Drop("empty", str(path), line, f"'{self.key}' holds nothing")
            else:
                pieces = _Pieces(self.length)
                for offset, part in enumerate(value.split("\n")):
                    if self.piece == "line" or (self.piece == "paragraph" and not part.strip()):
                        yield from pieces.end()
                    yield from pieces.add(line, part if offset == 0 or not pieces.begun else f"\n{part}")
                yield from pieces.end()

    def _of_lines(self, path: Path) -> Iterator[tuple[int, str] | Drop]:
        pieces = _Pieces(self.length)
        with reading(path, self.encoding) as file:
            for item in lines(file, self.record_limit, str(path)):
                if isinstance(item, Drop):
                    yield item
                    continue
                number, line = item
                parts = self.separator is not None and line.strip() == self.separator.strip()
                if parts or self.piece == "line" or (self.piece == "paragraph" and not line.strip()):
                    yield from pieces.end()
                if not parts and (line.strip() or pieces.begun):
                    yield from pieces.add(number, f"\n{line}" if pieces.begun else line)
        yield from pieces.end()


class _Pieces:
    """Text that is gathered and given out in pieces of at most `length` characters, cut where something ends in their second
    half."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._parts: list[str] = []
        self._size = self._line = 0

    @property
    def begun(self) -> bool:
        return bool(self._parts)

    def add(self, line: int, text: str) -> Iterator[tuple[int, str]]:
        """Take more text; the pieces that are full."""
        if not self._parts:
            self._line = line
        self._parts.append(text)
        self._size += len(text)
        if self._size <= self._length:
            return
        whole, place = "".join(self._parts), 0
        while len(whole) - place > self._length:
            end = _cut(whole, place, self._length)
            if (piece := whole[place:end].strip("\n")).strip():
                yield self._line, piece
            place, self._line = end, line
        rest = whole[place:].lstrip("\n")
        self._parts, self._size = [rest] if rest else [], len(rest)

    def end(self) -> Iterator[tuple[int, str]]:
        """The last piece, if there is one."""
        whole = "".join(self._parts).strip("\n")
        if whole.strip():
            yield self._line, whole
        self._parts, self._size = [], 0


def _cut(text: str, start: int, length: int) -> int:
    """Where a piece from `start` on ends: behind the last empty line, line, sentence or word of its second half."""
    half, last = start + length // 2, start + length
    for mark in ("\n\n", "\n"):
        place = text.rfind(mark, half, last)
        if place >= 0:
            return place + len(mark)
    ends = [match.end() for match in _ENDS.finditer(text, half, last)]
    if ends:
        return ends[-1]
    place = text.rfind(" ", half, last)
    return place + 1 if place >= 0 else last
