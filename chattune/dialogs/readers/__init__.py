"""Readers: from a file in some format to dialogs, each with the place it came from.

A reader never loses a row silently: what it cannot use it yields as a `Drop` with a reason, the file and the line.
It keeps messages as they stand; `dialogs/shape.py` brings them into their normal shape afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import field_validator

from chattune.core.part import Part, setting
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.text import known_encoding


class Reader(Part):
    """Reads one format. `read` does the work; `score` says how surely the beginning of a file is of this format."""

    encoding: str = setting("utf-8", "encoding of the text (utf-8, gb18030, latin-1, utf-16 …); a byte order mark may stand or not")
    record_limit: int = setting(
        16 * 2**20, "characters of the longest line or record that is read; a longer one is dropped and counted", low=1024, high=2**31
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        return known_encoding(value)

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        """Every conversation in the file at `path`, in order; ``file`` and ``line`` (from 1) tell the place of each."""
        raise NotImplementedError

    def score(self, path: Path, head: str) -> float:
        """Confidence from 0 (not this format) to 1 (certain), from the file's name and its first 64 KiB of text."""
        raise NotImplementedError
