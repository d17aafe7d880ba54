"""Stop when nothing has become better for some evaluations."""

from __future__ import annotations

from typing import Any

from chattune.core.part import setting
from chattune.train.stoppers import Stopper


class Patience(Stopper):
    """Stop when the validation loss has not improved for a number of evaluations in a row.

    Helps when: small data, where validation loss turns up again.   Hurts when: patience is shorter than the noise of the curve,
    which goes up and down before it falls further: patience 1 stops at the first rise.   Cost: the evaluations.
    Start with: patience 5.   Source: Prechelt 1998, "Early stopping, but when?" (his UP criterion, counted from the best).
    """

    patience: int = setting(5, "evaluations without improvement before stopping", low=1, search=[3, 5, 10])
    min_delta: float = setting(0.0, "nats per token below the best that count as an improvement", low=0.0, high=10.0)

    def stop(self, history: list[dict[str, Any]]) -> str | None:
        best, since = float("inf"), 0
        for entry in history:
            if entry["loss"] < best - self.min_delta:  # false for a loss that is not a number
                best, since = entry["loss"], 0
            else:
                since += 1
        if since < self.patience:
            return None
        return f"validation loss did not fall below {best:.4f} for {since} evaluations"
