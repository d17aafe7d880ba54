"""Monte Carlo dropout: how sure the model is of each token, and how much of its doubt is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.decoders import Candidate, Decoder

if TYPE_CHECKING:
    from chattune.generate.speaker import Speaker


class MonteCarloDropout(Decoder):
    """Give the greedy reply, and how unsure the model is of each token: thinned-out copies of it are asked.

    Two numbers a token, in nats: the entropy of the copies' mean prediction (all doubt), and the mutual information of prediction and
    copy (the part of it that more data would remove).

    Helps when: an answer must be known to be unsure: the information is high where the training data said little.
    Hurts when: the model was trained without dropout: the copies then differ more than what is known does.
    Cost: `samples` passes over the reply.   Start with: 16 samples, the rate of the training.
    Source: Gal & Ghahramani 2016, arXiv:1506.02142; the division of the doubt after Houlsby et al. 2011, arXiv:1112.5745.
    """

    samples: int = setting(16, "copies of the model that are asked", low=1, high=4096, search=[8, 16, 32])
    rate: float = setting(0.1, "share of activations that a copy lacks; 0: none, and no doubt of its own", low=0.0, below=1.0)

    def decode(self, speaker: Speaker, prompt: Sequence[int]) -> list[Candidate]:
        from chattune.generate.decoders._thinned import doubt
        from chattune.generate.decoders.contrastive_search import ContrastiveSearch

        (greedy,) = ContrastiveSearch(k=1, alpha=0.0).decode(speaker, prompt)
        entropy, information = doubt(speaker, [*prompt, *greedy.tokens], len(greedy.tokens), self.samples, self.rate)
        return [replace(greedy, entropy=entropy, information=information)]
