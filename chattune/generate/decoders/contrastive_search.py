"""Contrastive search: likely, and unlike what was said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.generate.decoders import Candidate, Decoder

if TYPE_CHECKING:
    from chattune.generate.speaker import Speaker


class ContrastiveSearch(Decoder):
    """Of the k likeliest tokens take the one that is likely and unlike all that was said.

    That is the one of the highest (1 − α) · p − α · (largest cosine similarity of its hidden state to that of any token before, prompt
    included). Nothing is drawn.

    Helps when: greedy decoding repeats itself and sampling loses the thread.
    Hurts when: hidden states of all tokens look alike (small or fresh models): the similarity then says nothing.
    Cost: k tokens are computed for each one taken.   Start with: k 4, alpha 0.6.
    Source: Su et al. 2022, arXiv:2202.06417, with the hidden states from which the head computes logits.
    """

    draws: ClassVar[bool] = False

    k: int = setting(4, "candidates at each step; 1: greedy", low=1, high=256, search=[4, 6, 8])
    alpha: float = setting(0.6, "α: weight of being unlike; 0: greedy", low=0.0, high=1.0, search=[0.3, 0.6])

    def decode(self, speaker: Speaker, prompt: Sequence[int]) -> list[Candidate]:
        import torch
        from torch.nn.functional import normalize

        progress, room = speaker.begin(prompt), speaker.room(prompt)
        before = normalize(progress.read.double(), dim=-1)  # (time, width)
        tokens: list[int] = []
        logprobs: list[float] = []
        while True:
            log, ids = progress.log[0].topk(min(self.k, progress.log.shape[1]))
            ids = ids[log > -torch.inf]
            progress.go_on([0] * len(ids), ids.tolist())
            hidden = normalize(progress.hidden.double(), dim=-1)  # (k, width)
            likeness = (hidden @ before.T).amax(-1)
            best = int(((1 - self.alpha) * log[: len(ids)].exp() - self.alpha * likeness).argmax())
            tokens.append(int(ids[best]))
            logprobs.append(float(log[best]))
            ended = tokens[-1] in speaker.ends
            if ended or len(tokens) == room:
                return [Candidate(tuple(tokens), tuple(logprobs), sum(logprobs), "stop" if ended else "length")]
            before = torch.cat([before, hidden[best : best + 1]])
            progress.keep([best])
