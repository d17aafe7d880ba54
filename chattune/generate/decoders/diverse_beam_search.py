"""Diverse beam search: groups of beams that avoid each other's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.generate.decoders import Candidate, Decoder

if TYPE_CHECKING:
    from chattune.generate.speaker import Speaker


class DiverseBeamSearch(Decoder):
    """Search beams in groups that avoid each other's tokens, and give the best reply of each group.

    A token costs `strength` for each beam of an earlier group that takes it in the same step. No reply is given twice.

    Helps when: a list of really different answers is wanted; those of one beam search differ in a word.
    Hurts when: strength is so large that later groups say what is wrong only to be different.
    Cost: `groups` × `width` replies side by side.   Start with: 4 groups of 2 beams, strength 0.5.
    Source: Vijayakumar et al. 2018, arXiv:1610.02424, with Hamming diversity: it acts on the choice of beams, while sums and
    scores stay the model's own log-probabilities (transformers sums up the costs, too).
    """

    draws: ClassVar[bool] = False

    groups: int = setting(4, "groups of beams, each of which gives a reply", low=1, high=256, search=[2, 4])
    width: int = setting(2, "beams of a group", low=1, high=256, search=[1, 2, 4])
    strength: float = setting(
        0.5, "nats that a token costs for each beam of an earlier group that takes it", low=0.0, high=100.0, search=[0.2, 0.5, 1.0]
    )
    length_penalty: float = setting(1.0, "exponent of the length that divides the log-probability", low=0.0, high=5.0)

    def decode(self, speaker: Speaker, prompt: Sequence[int]) -> list[Candidate]:
        from chattune.generate.decoders._beams import Plan, search

        chosen: dict[tuple[int, ...], Candidate] = {}
        for found in search(speaker, prompt, Plan(self.width, self.length_penalty, self.groups, self.groups, self.strength)):
            # Any beam may end at any time; an ending that an earlier group has is not this one's.
            new = next((candidate for candidate in found if candidate.tokens not in chosen), None)
            if new is not None:
                chosen[new.tokens] = new
        return sorted(chosen.values(), key=lambda candidate: (-candidate.score, candidate.tokens))
