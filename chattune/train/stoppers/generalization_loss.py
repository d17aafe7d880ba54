"""Stop when validation loss stands clearly above its best."""

from __future__ import annotations

import math
from typing import Any

from chattune.core.part import setting
from chattune.train.stoppers import Stopper


class GeneralizationLoss(Stopper):
    """Stop when the validation loss is more than some percent above the lowest seen so far.

    Helps when: curves are smooth and overfitting is strong.   Hurts when: early spikes are larger than the limit, or the loss
    creeps up slowly for a long time (use patience).   Cost: the evaluations.   Start with: limit 2.
    Source: Prechelt 1998, "Early stopping, but when?", criterion GL: 100 · (loss / lowest − 1) > limit.
    """

    limit: float = setting(2.0, "percent above the lowest loss", above=0.0, high=1000.0, log=True, search=(1.0, 10.0))

    def stop(self, history: list[dict[str, Any]]) -> str | None:
        losses = [entry["loss"] for entry in history if math.isfinite(entry["loss"])]
        if not losses:
            return None
        lowest = min(losses)
        above = 100 * (losses[-1] / lowest - 1) if lowest > 0 else 0.0
        return f"validation loss {losses[-1]:.4f} is {above:.1f} % above its lowest, {lowest:.4f}" if above > self.limit else None
