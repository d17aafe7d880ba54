"""Large JSON objects whose lists are read element by element: what exports of whole chats are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, TextIO

from chattune.dialogs.dialog import Drop
from chattune.dialogs.json_stream import BLANK, CLOSED, ENTERED, JsonStream
from chattune.dialogs.text import Decoding


def walk(file: TextIO, limit: int, shown: str, into: Collection[str]) -> Iterator[tuple[str, int, Any] | Drop]:
    """Every value of a JSON file with its path and line, where the lists and objects whose paths are in `into` are gone through.

    Paths: the keys with dots between them, ``[]`` for the elements of a list (``chats.list[].messages[]``), nothing for the
    whole. What is gone through comes once itself, with the value `ENTERED`, before what is in it. A broken element is told and
    the next is read.
    """
    decoding = Decoding(file, shown)
    stream = JsonStream(file, limit, shown, decoding.lost)
    opening = stream.skip(BLANK)
    if opening in ("[", "{"):
        yield from _within(stream, "", into)
        if stream.skip(BLANK):
            yield stream.unread("more text behind the end")
    elif opening:
        yield "", stream.line, ENTERED
        decoding.lost(stream.ahead, stream.line)  # text of another encoding begins with no bracket either
        yield decoding.lost(stream.ahead.partition("\n")[0], stream.line) or stream.unread("a list or an object is expected")
    decoding.end()


def _within(stream: JsonStream, path: str, into: Collection[str]) -> Iterator[tuple[str, int, Any] | Drop]:
    opening = stream.skip(BLANK)
    yield path, stream.line, ENTERED

    def inner(key: str) -> str:
        own = f"{path}.{key}" if path else key
        return own if opening == "{" else f"{path}[]"

    for item in stream.elements(opening, lambda key: inner(key) in into):
        if isinstance(item, Drop):
            yield item
            continue
        key, line, value = item
        if value is CLOSED:
            return
        if value is ENTERED:
            yield from _within(stream, inner(key), into)
        else:
            yield inner(key), line, value
