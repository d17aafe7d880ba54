"""Beam search: several ways to go on are kept, and the likeliest whole replies win."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator

from chattune.core.part import setting
from chattune.generate.decoders import Candidate, Decoder

if TYPE_CHECKING:
    from chattune.generate.speaker import Speaker


class BeamSearch(Decoder):
    """Keep the likeliest beginnings at each step, and give the whole replies of the highest log-probability for their length.

    A reply's score is its log-probability divided by length^length_penalty; the end of turn counts as a token.

    Helps when: there is one right answer, and a first word that looks unlikely leads to it.
    Hurts when: talk should be lively: the likeliest reply of an open conversation is short and dull.
    Cost: `width` replies side by side.   Start with: 4 beams, length_penalty 1.
    Source: Graves 2012, arXiv:1211.3711; the division by length as in transformers (Wu et al. 2016, arXiv:1609.08144, divide by
    ((5 + length) / 6)^α). It stops when no beam can beat what was found, not sooner. Rules do not act here.
    """

    draws: ClassVar[bool] = False

    width: int = setting(4, "beginnings kept at each step", low=1, high=4096, search=[2, 4, 8])
    length_penalty: float = setting(
        1.0, "exponent of the length that divides the log-probability; 0: none, short replies win", low=0.0, high=5.0,
        search=[0.0, 0.6, 1.0],
    )  # fmt: skip
    n_best: int = setting(1, "replies given", low=1, high=4096)

    @model_validator(mode="after")
    def _found_among_the_beams(self) -> Self:
        if self.n_best > self.width:
            raise ValueError(f"{self.n_best} replies cannot come of {self.width} beams")
        return self

    def decode(self, speaker: Speaker, prompt: Sequence[int]) -> list[Candidate]:
        from chattune.generate.decoders._beams import Plan, search

        return search(speaker, prompt, Plan(self.width, self.length_penalty, self.n_best))[0]
