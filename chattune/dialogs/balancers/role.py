"""As much of dialogs in which the assistant says little as of those in which it says much."""

from __future__ import annotations

from collections.abc import Collection

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog


class Role(Balancer):
    """Mix dialogs by the share of what is said that the assistant says, in fifths, each by its size to the power of 1/temperature.

    Helps when: logs of one kind (long questions, one-word answers) outnumber the others.
    Hurts when: the share follows from the topic: then balance topics.
    Cost: none.   Start with: temperature 2.
    Source: temperature mixing, Arivazhagan et al. 2019, arXiv:1907.05019.
    """

    temperature: float = setting(2.0, "1: as it is; large: every fifth equally often", low=1.0, high=1e6, log=True, search=(1.0, 10.0))

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.dialogs.balancing import shares

        def fifth(dialog: Dialog) -> int:
            said = sum(len(message.content) for message in dialog.messages)
            own = sum(len(message.content) for message in dialog.messages if message.role == "assistant")
            return min(4, 5 * own // max(1, said))

        kinds = [f"assistant says {20 * own}–{20 * own + 20} %" for own in map(fifth, dialogs)]
        return Weights(shares(kinds, self.temperature), kinds)
