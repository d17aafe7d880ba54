"""Beams: the search that `beam_search` and `diverse_beam_search` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chattune.generate.decoders import Candidate
from chattune.generate.speaker import Speaker


@dataclass(frozen=True)
class Plan:
    """`groups` of `width` beams each; `strength`: what a token costs for each beam of an earlier group that took it in this step."""

    width: int
    length_penalty: float
    kept: int
    groups: int = 1
    strength: float = 0.0


@dataclass(frozen=True)
class _Beam:
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0

    def then(self, token: int, logprob: float) -> _Beam:
        return _Beam((*self.tokens, token), (*self.logprobs, logprob), self.total + logprob)


class _Group:
    """Beams that compete with each other, and the best replies that came of them."""

    def __init__(self, plan: Plan, room: int) -> None:
        self.plan, self.room = plan, room
        self.beams, self.found = [_Beam()], list[Candidate]()

    def end(self, log: Tensor, ends: Sequence[int]) -> None:
        """Every beam may end here. `log`: (beams, vocabulary)."""
        for beam, row in zip(self.beams, log[:, list(ends)].tolist(), strict=True):
            self._keep([beam.then(token, logprob) for token, logprob in zip(ends, row, strict=True) if logprob > -torch.inf], "stop")

    def extend(self, log: Tensor, taken: Tensor) -> list[tuple[int, int]]:
        """The best continuations become the beams; gives (number of the beam that each goes on from, token).

        `log`: (beams, vocabulary), −∞ for ends. Ranked by the whole log-probability, less what earlier groups have taken.
        """
        totals = torch.tensor([beam.total for beam in self.beams], dtype=log.dtype, device=log.device)
        ranked = (totals[:, None] + log - self.plan.strength * taken).flatten()
        best = ranked.topk(min(self.plan.width, len(ranked)))
        places = best.indices[best.values > -torch.inf]
        moves = [divmod(place, log.shape[1]) for place in places.tolist()]
        logprobs = log.flatten()[places].tolist()
        self.beams = [self.beams[row].then(token, logprob) for (row, token), logprob in zip(moves, logprobs, strict=True)]
        return moves

    def settled(self) -> bool:
        """Whether no beam can come to beat what was found: a sum of logarithms only falls, and length helps it most at the limit."""
        if len(self.found) < self.plan.kept:
            return not self.beams
        most = max((beam.total / self.room**self.plan.length_penalty for beam in self.beams), default=-torch.inf)
        return most <= self.found[-1].score

    def cut(self) -> None:
        """The limit is reached: what the beams hold are replies, too."""
        self._keep(self.beams, "length")

    def _keep(self, beams: Sequence[_Beam], reason: str) -> None:
        new = [Candidate(b.tokens, b.logprobs, b.total / len(b.tokens) ** self.plan.length_penalty, reason) for b in beams]
        self.found = sorted([*self.found, *new], key=lambda candidate: (-candidate.score, candidate.tokens))[: self.plan.kept]


def search(speaker: Speaker, prompt: Sequence[int], plan: Plan) -> list[list[Candidate]]:
    """For each group what it found, the best first."""
    room, ends = speaker.room(prompt), sorted(speaker.ends)
    progress = speaker.begin(prompt)
    groups = [_Group(plan, room) for _ in range(plan.groups)]
    going = groups
    progress.keep([0] * len(going))
    for step in range(1, room + 1):
        rows, tokens, start, left = [], [], 0, []
        taken = progress.log.new_zeros(progress.log.shape[1])
        for group in going:
            log = progress.log[start : start + len(group.beams)].clone()
            group.end(log, ends)
            log[:, ends] = -torch.inf
            first, start = start, start + len(group.beams)
            moves = group.extend(log, taken)
            for _, token in moves:
                taken[token] += 1
            if not group.settled():
                left.append(group)
                rows += [first + row for row, _ in moves]
                tokens += [token for _, token in moves]
        going = left
        if not going or step == room:
            break
        progress.go_on(rows, tokens)
    for group in going:
        group.cut()
    return [group.found for group in groups]
