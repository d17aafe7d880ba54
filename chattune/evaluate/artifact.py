"""`Report`: what `evaluate` gives: the figures, a page to read, and every reply that was judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from chattune.core import files
from chattune.core.artifact import Artifact


class Report(Artifact):
    """``summary.json``, ``report.html``, ``replies.jsonl`` and ``recipe.yaml``, which repeats the whole run."""

    stage: ClassVar[str] = "evaluate"

    @property
    def summary(self) -> dict[str, Any]:
        """``{"metrics", "baselines", "people", "difference", "verdict", "notes", "split", "counts", …}``."""
        summary: dict[str, Any] = files.read_json(self.path / "summary.json")
        return summary

    def replies(self) -> Iterator[dict[str, Any]]:
        """One row a prompt: ``conversation``, ``history``, ``reference``, ``reply``, ``finish_reason``, ``baselines``, ``scores``."""
        return files.read_lines_of_json(self.path / "replies.jsonl")
