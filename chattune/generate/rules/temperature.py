"""Temperature: sharpen or flatten the distribution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor


class Temperature(Rule):
    """Divide the logits by a temperature: below 1 the likely tokens gain, above 1 the unlikely ones; 0 leaves only the likeliest.

    Helps when: replies are too random (lower it) or too alike (raise it).   Hurts when: low values make a small model repeat itself.
    Cost: none.   Start with: 0.7. At 1 the model's own estimate of the data is drawn from: lower is not "closer to the
    training data" but closer to its modes, and 0 is greedy decoding. It acts when decoding, never in training.
    Source: Ackley, Hinton & Sejnowski 1985, doi:10.1207/s15516709cog0901_7.
    """

    temperature: float = setting(1.0, "divisor of the logits; 0: greedy", low=0.0, high=100.0, search=[0.0, 0.3, 0.7, 1.0])

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.temperature == 1.0:
            return logits
        if self.temperature == 0.0:
            return logits.new_full(logits.shape, -math.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
        # The largest logit becomes 0 first, so that a tiny temperature cannot overflow.
        return (logits - logits.amax(-1, keepdim=True)) / self.temperature
