"""Speculative decoding: tokens are proposed cheaply, and the model looks at several of them in one pass. What comes out is the same.

Proposals come from an earlier place of the conversation that went on alike (Saxena 2023, prompt lookup decoding), or from a smaller
model with the same tokenizer. A looked-up token is taken where the model draws it, too: the reply is the one without speculation,
token by token. One that a draft model drew is taken by the rule of Leviathan et al. 2023, arXiv:2211.17192: the likeliest tokens are
the same, and draws have the same distribution, but are other ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from chattune.generate.choice import Asking, Choice, Row
from chattune.generate.reply import Speculation as Speculation
from chattune.generate.runner import Piece, Runner
from chattune.generate.scheduler import common

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.generate.choice import Chances

_PATIENCE = 6  # steps without a proposal, at most, after proposals that were not taken


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens that may come next; `shares`: for each (vocabulary,) float64, what it was drawn from, none where no draw was made."""

    tokens: list[int]
    shares: list[np.ndarray] | None = None


class Speculating(Asking, Protocol):
    """A request to which tokens are proposed: also its slot, and the streams of the draft model's draws and of their acceptance."""

    slot: int
    drafting: Chances
    accepting: Chances


@dataclass(slots=True)
class Trust:
    """How often proposals to a request were taken lately; those that never are, are made more and more seldom."""

    missed: int = 0
    pause: int = 0

    def asks(self) -> bool:
        """Whether to propose in this step."""
        self.pause -= 1
        return self.pause < 0

    def learn(self, taken: int) -> None:
        """How many of the tokens proposed were taken."""
        self.missed = 0 if taken else self.missed + 1
        self.pause = min(self.missed * (self.missed - 1) // 2, _PATIENCE)


def looked_up(ids: np.ndarray, match: int, most: int) -> list[int]:
    """At most `most` tokens that followed the last earlier place where the `match` ids at the end of (n,) `ids` stand, too."""
    places = len(ids) - match
    if places < 1 or most < 1:
        return []
    alike = ids[:places] == ids[places]
    for back in range(1, match):
        alike &= ids[back : places + back] == ids[places + back]
    found = np.flatnonzero(alike)
    return ids[found[-1] + match :][:most].tolist() if len(found) else []


class Drafter:
    """A smaller model that proposes, with a slot for each of the engine's; it reads `chunk` tokens in a pass until it has caught up."""

    def __init__(self, runner: Runner, choice: Choice, chunk: int) -> None:
        self.runner, self.choice, self.chunk = runner, choice, chunk
        self._held: list[list[int]] = [[] for _ in range(runner.slots)]

    def proposals(self, requests: Sequence[Speculating], most: Sequence[int]) -> list[Proposal]:
        """For each request at most so many tokens."""
        drafts: list[list[int]] = [[] for _ in requests]
        shares: list[list[np.ndarray]] = [[] for _ in requests]
        going = [number for number in range(len(requests)) if most[number] > 0]
        while going:
            pieces = [self._piece(requests[number], drafts[number]) for number in going]
            logits = self.runner.forward(pieces)
            ready = []  # rows of those whose tokens were all read
            for row, (number, piece) in enumerate(zip(going, pieces, strict=True)):
                self._held[piece.slot][piece.start :] = piece.ids
                if len(self._held[piece.slot]) == len(requests[number].ids) + len(drafts[number]):
                    ready.append(row)
            drawn = [going[row] for row in ready]
            if drawn:
                rows = [Row(requests[number], tuple(drafts[number])) for number in drawn]
                self._draw(logits[ready], rows, [drafts[number] for number in drawn], [shares[number] for number in drawn])
            full = {number for number in drawn if len(drafts[number]) == most[number] or drafts[number][-1] in self.choice.ends}
            going = [number for number in going if number not in full]
        return [Proposal(tokens, own or None) for tokens, own in zip(drafts, shares, strict=True)]

    def _piece(self, request: Speculating, drafts: list[int]) -> Piece:
        """What the slot lacks of the request and its drafts, the last token at least."""
        ids = [*request.ids, *drafts]
        start = min(common(self._held[request.slot], ids), len(ids) - 1)
        return Piece(request.slot, start, ids[start : start + self.chunk])

    def _draw(self, logits: Tensor, rows: list[Row], drafts: list[list[int]], shares: list[list[np.ndarray]]) -> None:
        """Append a token to each row's drafts, and where it was drawn the distribution that it was drawn from."""
        found, _ = self.choice.shares(logits, rows)
        for row, own, tokens, drawn_from in zip(rows, found.cpu().numpy(), drafts, shares, strict=True):
            if row.request.chooser.style.greedy:
                tokens.append(int(own.argmax()))
            else:
                tokens.append(_drawn(own, cast("Speculating", row.request).drafting[row.place]))
                drawn_from.append(own)


def accepted(target: np.ndarray, proposal: Proposal, accepting: Sequence[float], chances: Sequence[float]) -> list[int]:
    """The tokens that come: proposed ones as far as they are taken, and one more of the model's own.

    `target`: (tokens + 1, vocabulary) float64, the model's probabilities after none, one, … of the tokens proposed; `accepting` and
    `chances`: uniform numbers for each place, to take a token and to draw another. A token of probability q where it was drawn and p
    by the model is taken with the probability min(1, p/q); else one comes from max(p − q, 0), whose sum is what was not taken, so that
    each token comes with the probability p, whatever q is.
    """
    assert proposal.shares is not None
    for place, token in enumerate(proposal.tokens):
        p, q = target[place], proposal.shares[place]
        if accepting[place] * q[token] < p[token]:
            continue
        left = np.maximum(p - q, 0.0)
        return [*proposal.tokens[:place], _drawn(left if left.any() else p, chances[place])]
    return [*proposal.tokens, _drawn(target[-1], chances[len(proposal.tokens)])]


def _drawn(shares: np.ndarray, chance: float) -> int:
    """As `drawn_at`, for one row of probabilities times some number."""
    running = shares.cumsum()
    return int(running.searchsorted(min(chance, 1 - 1e-12) * running[-1], side="right"))
