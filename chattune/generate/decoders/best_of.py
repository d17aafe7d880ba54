"""Best of n: several replies are drawn, and the likeliest is given first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.core.seeds import generator
from chattune.generate.decoders import Candidate, Decoder

if TYPE_CHECKING:
    from chattune.generate.speaker import Speaker


class BestOf(Decoder):
    """Draw `samples` replies and rank them by their mean log-probability a token, under the model's own distribution.

    Helps when: replies are wanted that differ as people's do, with the odd ones last; it is what voting and the choice by minimum
    Bayes risk start from.   Hurts when: the likeliest is the dullest.   Cost: `samples` replies side by side.   Start with: 8.
    Source: Adiwardana et al. 2020, arXiv:2001.09977 (sample and rank).
    """

    samples: int = setting(8, "replies drawn", low=1, high=4096, search=[4, 8, 16])
    temperature: float = setting(1.0, "divisor of the logits when drawing", above=0.0, high=100.0, search=[0.7, 1.0])

    def decode(self, speaker: Speaker, prompt: Sequence[int]) -> list[Candidate]:
        import torch

        from chattune.generate.reply import drawn_at

        progress, room = speaker.begin(prompt), speaker.room(prompt)
        chances = torch.from_numpy(generator(speaker.seed, "best_of", *prompt).random((room, self.samples)))
        going, found = list(range(self.samples)), list[Candidate]()
        tokens: list[list[int]] = [[] for _ in going]
        logprobs: list[list[float]] = [[] for _ in going]
        progress.keep([0] * self.samples)
        for step in range(room):
            chosen = drawn_at(progress.log / self.temperature, chances[step, going].to(progress.log.device))
            said = progress.log.gather(-1, chosen[:, None])[:, 0].tolist()
            for number, token, logprob in zip(going, chosen.tolist(), said, strict=True):
                tokens[number].append(token)
                logprobs[number].append(logprob)
            ended = [tokens[number][-1] in speaker.ends for number in going]
            reasons = ["stop" if stops else "length" for stops in ended]
            for number, reason in zip(going, reasons, strict=True):
                if reason == "stop" or step + 1 == room:
                    mean = sum(logprobs[number]) / len(logprobs[number])
                    found.append(Candidate(tuple(tokens[number]), tuple(logprobs[number]), mean, reason))
            rows = [row for row, stops in enumerate(ended) if not stops]
            if not rows or step + 1 == room:
                break
            going = [going[row] for row in rows]
            progress.go_on(rows, [tokens[number][-1] for number in going])
        return sorted(found, key=lambda candidate: (-candidate.score, candidate.tokens))
