"""``metrics.jsonl``: the append-only record of a run, which plots, reports and trackers read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from chattune.core import files


class Record:
    """One JSON object a line, each whole on disk before `append` returns to a reader of the file.

    Opening it again repairs a line that a crash tore. Numbers that JSON has no word for are kept as ``"nan"``/``"inf"``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                files.write_atomically(path, content[: content.rfind(b"\n") + 1])

    def append(self, **fields: Any) -> None:
        line = json.dumps({key: _sayable(value) for key, value in fields.items()}, ensure_ascii=False) + "\n"
        with files.telling_space(self.path), self.path.open("ab") as file:
            file.write(line.encode("utf-8"))

    def rows(self) -> list[dict[str, Any]]:
        return list(files.read_lines_of_json(self.path)) if self.path.exists() else []

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`: the run continues from there."""
        kept = [row for row in self.rows() if row.get("step", 0) <= step]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        if self.path.exists() and os.path.getsize(self.path) != len(text.encode("utf-8")):
            files.write_atomically(self.path, text)


class Unrecorded(Record):
    """Where another process keeps the record: takes everything and writes nothing."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def append(self, **fields: Any) -> None:
        """Said by the process that records."""

    def rows(self) -> list[dict[str, Any]]:
        return []

    def rewind(self, step: int) -> None:
        """There is nothing to forget."""


def _sayable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
