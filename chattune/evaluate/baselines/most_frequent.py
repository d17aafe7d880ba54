"""The most frequent reply, always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chattune.evaluate.baselines import Baseline, Learned

if TYPE_CHECKING:
    from chattune.evaluate.exchanges import Exchange
    from chattune.tokens.token_set import TokenSet


class MostFrequent(Baseline):
    """Answers everything with the reply that people gave most often in training, however it was capitalised.

    Helps when: a model's scores look good; a single phrase often reaches half of them.   Hurts when: never.
    Cost: none.   Start with: nothing to set.
    Source: the majority-class baseline.
    """

    def learn(self, exchanges: Sequence[Exchange], tokens: TokenSet) -> Learned:
        return _Always(most_frequent([exchange.reply for exchange in exchanges]))


def most_frequent(replies: Sequence[str]) -> str:
    """The commonest of `replies` when case and space at the ends do not count, in its commonest spelling; the first of equals."""
    if not replies:
        return ""
    phrase, _ = Counter(reply.strip().casefold() for reply in replies).most_common(1)[0]
    return Counter(reply.strip() for reply in replies if reply.strip().casefold() == phrase).most_common(1)[0][0]


class _Always(Learned):
    def __init__(self, reply: str) -> None:
        self.reply = reply

    def replies(self, prompts: Sequence[Exchange], seed: int) -> list[str]:
        return [self.reply] * len(prompts)
