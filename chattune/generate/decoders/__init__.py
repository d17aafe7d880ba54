"""Decoders: ways from a prompt to whole replies that look further than the next token; each gives its candidates, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import Part

if TYPE_CHECKING:
    from chattune.generate.speaker import Speaker


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to answer. `tokens`: the ids, with the end of turn where it came; `logprobs`: the model's own log-probability of each
    (nats); `score`: what the decoder ranks by, more is better; `finish_reason`: ``"stop"`` or ``"length"``.

    `entropy` and `information` (nats, one a token) where the decoder measures what the model does not know, else empty.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float
    finish_reason: str
    entropy: tuple[float, ...] = ()
    information: tuple[float, ...] = ()


class Decoder(Part):
    """One way of decoding."""

    draws: ClassVar[bool] = True  # whether the speaker's seed acts: where not, nothing is left to chance

    def decode(self, speaker: Speaker, prompt: Sequence[int]) -> list[Candidate]:
        """At least one candidate, the best first, of at most `speaker.room(prompt)` tokens each.

        The same speaker (its seed included) and prompt give the same candidates; the model is left as it was found.
        """
        raise NotImplementedError
