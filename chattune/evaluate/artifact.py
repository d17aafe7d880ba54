"""`Report`: what `evaluate` gives: the figures, a page to read, and every reply that was judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from chattune.core import files
from chattune.core.artifact import Artifact

if TYPE_CHECKING:
    from chattune.evaluate.loss import SplitLoss

LOSSES = "losses.npy"
PARITY = "parity.jsonl"


class Report(Artifact):
    """``summary.json``, ``report.html``, ``replies.jsonl``, ``losses.npy`` and ``recipe.yaml``, which repeats the whole run.

    ``parity.jsonl`` where `evaluate.parity` asked for it.
    """

    stage: ClassVar[str] = "evaluate"

    @property
    def summary(self) -> dict[str, Any]:
        """``{"metrics", "baselines", "people", "difference", "verdict", "notes", "split", "counts", …}``."""
        summary: dict[str, Any] = files.read_json(self.path / "summary.json")
        return summary

    @property
    def loss(self) -> SplitLoss:
        """The model's loss on each test conversation."""
        from chattune.evaluate.loss import SplitLoss

        return SplitLoss.load(self.path / LOSSES)

    def replies(self) -> Iterator[dict[str, Any]]:
        """One row a prompt: ``conversation``, ``history``, ``reference``, ``reply``, ``finish_reason``, ``baselines``, ``scores``."""
        return files.read_lines_of_json(self.path / "replies.jsonl")

    def parity(self) -> list[dict[str, Any]]:
        """One row a group and conversation that a swap changes: ``group``, ``conversation``, ``bits``, ``bytes``, ``side``."""
        path = self.path / PARITY
        return list(files.read_lines_of_json(path)) if path.exists() else []


class DataReport(Artifact):
    """``summary.json`` and ``data_report.html``."""

    stage: ClassVar[str] = "survey"

    @property
    def summary(self) -> dict[str, Any]:
        """Everything that the page shows, as `evaluate.survey` gathered it."""
        summary: dict[str, Any] = files.read_json(self.path / "summary.json")
        return summary
