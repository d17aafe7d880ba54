"""A reply's tokens as text: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chattune.tokens.tokenizer import TextStream


class Stops:
    """Holds back what may be the beginning of a stop text, until it is known to be one or not."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self._held = tuple(stops), ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop text came; what stands before the first one is given."""
        if not self.stops:
            return text, False
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max(_begun(text, stop) for stop in self.stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def finish(self) -> str:
        """What was held back, and was no stop text after all."""
        text, self._held = self._held, ""
        return text


class ReplyText:
    """Text of a reply, token by token; stop texts count from the token `first` on (0: all)."""

    def __init__(self, stream: TextStream, stops: Sequence[str], first: int = 0) -> None:
        self._stream, self._stops, self._first, self._count = stream, Stops(stops), first, 0

    def push(self, token: int) -> tuple[str, bool]:
        """The text that `token` completes, and whether a stop text did."""
        self._count += 1
        text = self._stream.push(token)
        return (text, False) if self._count < self._first else self._stops.push(text)

    def finish(self) -> tuple[str, bool]:
        """What is left at the end, and whether a stop text was found in it."""
        text, stopped = self._stops.push(self._stream.finish())
        return (text, True) if stopped else (text + self._stops.finish(), False)


def _begun(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with, fewer than all of it."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
