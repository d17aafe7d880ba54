"""Presence penalty: what was said once becomes less likely."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.generate.rules import Rule
from chattune.generate.rules._history import counts

if TYPE_CHECKING:
    from torch import Tensor


class PresencePenalty(Rule):
    """Take the penalty from the logit of every token that the reply holds already, however often; 0 changes nothing.

    Helps when: replies should come to new topics.   Hurts when: a word must come again (names, code, articles); below 0 it
    invites loops.   Cost: none.   Start with: 0.5; -2 to 2.
    Source: OpenAI's API reference, ``presence_penalty``: logit − penalty · [count > 0], counted over the reply, not the prompt.
    """

    counts_prompt: ClassVar[bool] = False
    penalty: float = setting(
        0.0, "taken from the logit of a token that was said; below 0: added", low=-2.0, high=2.0, search=[0.0, 0.5, 1.0]
    )

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.penalty == 0.0 or history.shape[-1] == 0:
            return logits
        return logits - self.penalty * (counts(logits, history) > 0)
