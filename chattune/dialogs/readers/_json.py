"""Large JSON objects whose lists are read element by element: what exports of whole chats are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, TextIO

from chattune.dialogs.dialog import Drop
from chattune.dialogs.text import _BLANK, _UNREAD, _Decoding, _short, _TooLong, _Window

ENTERED = object()  # stands for the value of a list or object that is gone through


def walk(file: TextIO, limit: int, shown: str, into: Collection[str]) -> Iterator[tuple[str, int, Any] | Drop]:
    """Every value of a JSON file with its path and line, where the lists and objects whose paths are in `into` are gone through.

    Paths: the keys with dots between them, ``[]`` for the elements of a list (``chats.list[].messages[]``), nothing for the
    whole. What is gone through comes once itself, with the value `ENTERED`, before what is in it. A broken element is told and
    the next is read.
    """
    window = _Window(file)
    decoding = _Decoding(file, shown)
    if window.skip(_BLANK):
        yield from _values(window, decoding, limit, shown, "", into)
        if window.skip(_BLANK):
            yield Drop("broken_json", shown, window.line, f"more text behind the end{_UNREAD}")
    decoding.end()


def _values(
    window: _Window, decoding: _Decoding, limit: int, shown: str, path: str, into: Collection[str]
) -> Iterator[tuple[str, int, Any] | Drop]:
    opening = window.skip(_BLANK)
    yield path, window.line, ENTERED
    closing = {"[": "]", "{": "}"}.get(opening, "")
    if not closing:
        decoding.lost(window.text[window.place :], window.line)  # text of another encoding begins with no bracket either
        line = window.line
        lost = decoding.lost(window.text[window.place :].partition("\n")[0], line)
        yield lost or Drop("broken_json", shown, line, f"a list or an object is expected{_UNREAD}")
        _abandon(window)
        return
    window.place += 1
    begins = ""
    while (mark := window.skip(_BLANK)) != closing:
        line, inner = window.line, f"{path}[]"
        if mark == "":
            yield Drop("broken_json", shown, line, "the file ends before its list or object does")
            return
        if mark == ",":
            window.place += 1
            continue
        begins = begins or window.begins()
        try:
            if opening == "{":
                key = str(window.value(limit))
                window.expect(":")
                inner = f"{path}.{key}" if path else key
            if inner in into and window.skip(_BLANK) in ("[", "{"):
                yield from _values(window, decoding, limit, shown, inner, into)
                continue
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
                yield Drop("line_too_long", shown, line, f"a record of {window.used} characters; the limit is {limit}")
            elif (lost := decoding.lost(window.text[window.place - window.used : window.place], line)) is not None:
                yield lost
            else:
                yield inner, line, value
        if not found:
            _abandon(window)
            return
    window.place += 1


def _abandon(window: _Window) -> None:
    """Pass over the rest of the file."""
    window.text, window.place = "", 0
    while window.grow():
        window.text = ""
