"""Stoppers: when to end training before the planned steps."""

from __future__ import annotations

from typing import Any

from chattune.core.part import Part


class Stopper(Part):
    """A rule over the history of evaluations."""

    def stop(self, history: list[dict[str, Any]]) -> str | None:
        """A reason to stop in words, or ``None`` to go on.

        `history`: one entry an evaluation, oldest first: ``{"step", "loss", "train_loss", …}``, losses in nats per token.
        """
        raise NotImplementedError
