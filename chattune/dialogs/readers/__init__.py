"""Readers: from a file in some format to dialogs, each with the place it came from.

A reader never loses a row silently: what it cannot use it yields as a `Drop` with a reason, the file and the line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chattune.core.part import Part
from chattune.dialogs.dialog import Dialog, Drop


class Reader(Part):
    """Reads one format. `read` does the work; `score` says how surely the beginning of a file is of this format."""

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        """Every conversation in the file at `path`, in order; ``file`` and ``line`` (from 1) tell the place of each."""
        raise NotImplementedError

    def score(self, path: Path, head: str) -> float:
        """Confidence from 0 (not this format) to 1 (certain), from the file's name and its first 64 KiB of text."""
        raise NotImplementedError
