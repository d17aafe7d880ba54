"""Frequency penalty: the more often something was said, the less likely it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.generate.rules import Rule
from chattune.generate.rules._history import counts

if TYPE_CHECKING:
    from torch import Tensor


class FrequencyPenalty(Rule):
    """Take the penalty from the logit of a token for each time that the reply holds it; 0 changes nothing.

    Helps when: replies run in circles: a loop is left after a few turns, since the penalty grows with each.
    Hurts when: replies are long: the commonest words and signs fade first.   Cost: none.   Start with: 0.3; -2 to 2.
    Source: OpenAI's API reference, ``frequency_penalty``: logit − penalty · count, counted over the reply, not the prompt.
    """

    counts_prompt: ClassVar[bool] = False
    penalty: float = setting(
        0.0, "taken from a token's logit for each time it was said; below 0: added", low=-2.0, high=2.0, search=[0.0, 0.3, 1.0]
    )

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.penalty == 0.0 or history.shape[-1] == 0:
            return logits
        return logits - self.penalty * counts(logits, history)
