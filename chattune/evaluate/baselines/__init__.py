"""Baselines: what any model must beat. Each learns from the training split only and is judged on the same test prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chattune.core.part import Part

if TYPE_CHECKING:
    from chattune.evaluate.exchanges import Exchange
    from chattune.evaluate.loss import SplitLoss
    from chattune.tokens.token_set import TokenSet, TokenSplit


class Learned:
    """What a baseline has learned. Each verb is optional: one that predicts tokens has a loss, one that talks has replies."""

    def loss(self, split: TokenSplit) -> SplitLoss | None:
        """Surprise at each dialog of `split`, on the same target tokens as a model's; none for one that does not predict."""
        return None

    def replies(self, prompts: Sequence[Exchange], seed: int) -> list[str] | None:
        """A reply to each prompt (its own reply is not to be looked at); none for one that does not talk."""
        return None


class Baseline(Part):
    """One thing to beat."""

    def learn(self, exchanges: Sequence[Exchange], tokens: TokenSet) -> Learned:
        """Learn from the training split: its exchanges in order, and its tokens."""
        raise NotImplementedError
