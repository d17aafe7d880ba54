"""`Dialogs`: what `collect` gives: three split files, what was dropped and why, and the counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from chattune.core import files
from chattune.core.artifact import Artifact
from chattune.dialogs.dialog import Dialog

SPLITS = ("train", "validation", "test")


class Dialogs(Artifact):
    """``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``dropped.jsonl`` and ``summary.json`` (counts and split)."""

    stage: ClassVar[str] = "collect"

    def read(self, split: str) -> Iterator[Dialog]:
        """The dialogs of one split in their stored order, streamed."""
        for data in files.read_lines_of_json(self.path / f"{split}.jsonl"):
            yield Dialog.from_dict(data)

    @property
    def summary(self) -> dict[str, Any]:
        """``{"counts": {"read", "kept", "dropped": {reason: n}}, "split": {…}, "sources": […]}``."""
        summary: dict[str, Any] = files.read_json(self.path / "summary.json")
        return summary
