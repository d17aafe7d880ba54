"""The network of the recurrent encoder–decoder, all turns of a dialog at once: the encoder walks windows, the decoder turns.

What makes it causal: a decoder's state follows from its own turn up to the token, and from encoder states of turns that ended before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.models.families._recurrent import EPSILON, Layer, State, refill_recurrent, replaced, window_sequences
from chattune.models.families._recurrent_family import GATES
from chattune.models.fresh import allocated, fill, unfilled
from chattune.models.language_model import Cache, LanguageModel, put_rows, take_rows, untouched
from chattune.models.layers import Linear, RMSNorm, attention, dropout
from chattune.models.states import StateCache
from chattune.models.unpacked import Sequences, beginnings

if TYPE_CHECKING:
    from chattune.models.families.seq2seq import Seq2Seq

_NOT_YET = 1 << 60  # the turn of a place in the cache that holds no token: later than all


class _Turns(StateCache):
    """Encoder and decoder states of each row, and of each token that was read the encoder's state and the number of its turn.

    `fresh`: (rows,) whether the next token begins a turn; `turn`: (rows,) how many ended.
    """

    def __init__(self, encoder: list[State], decoder: list[State], memory: Tensor) -> None:
        super().__init__([*encoder, *decoder], memory.shape[1])
        self.memory = memory  # (rows, length, width)
        self.turns = torch.full(memory.shape[:2], _NOT_YET, device=memory.device)
        self.turn = torch.zeros(len(memory), dtype=torch.long, device=memory.device)
        self.fresh = torch.ones(len(memory), dtype=torch.bool, device=memory.device)

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        for name in ("memory", "turns", "turn", "fresh"):
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def at(self, rows: Sequence[int], starts: Sequence[int]) -> Self:
        part = super().at(rows, starts)
        begins = part.lengths == 0
        part.memory = take_rows(self.memory, rows)
        part.turns = take_rows(self.turns, rows).masked_fill(begins[:, None], _NOT_YET)
        part.turn, part.fresh = take_rows(self.turn, rows).masked_fill(begins, 0), take_rows(self.fresh, rows) | begins
        return part

    def put(self, rows: Sequence[int], part: Self) -> None:
        super().put(rows, part)
        for name in ("memory", "turns", "turn", "fresh"):
            put_rows(getattr(self, name), rows, getattr(part, name))


class Seq2SeqModel(LanguageModel):
    """The network that `Seq2Seq.build` gives; `family` is resolved."""

    compiles = False  # sequences have another length in each batch
    family: Seq2Seq

    def __init__(self, family: Seq2Seq, vocabulary: int) -> None:
        super().__init__(family, vocabulary)
        assert family.layers and family.width
        width, states = family.width, 2 if family.cell == "lstm" else 1
        self.embedding = nn.Embedding(vocabulary, width)

        def stack() -> nn.ModuleList:
            return nn.ModuleList(Layer(family.cell, width, width, family.norm, family.memory) for _ in range(family.layers or 0))

        self.encoder, self.decoder = stack(), stack()
        self.bridges = nn.ModuleList(Linear(width, states * width) for _ in range(family.layers))
        self.query = Linear(width, width) if family.attention else None
        self.mix = Linear(2 * width, width) if family.attention else None
        self.norm = RMSNorm(width, EPSILON)
        self.output = None if family.tied else Linear(width, vocabulary)
        self.drop = 0.0
        self.set_dropout(family.dropout)

    @classmethod
    def fresh(cls, family: Seq2Seq, vocabulary: int, seed: int) -> Self:
        """A model with fresh weights, each drawn from a stream of its own, named by the seed and the parameter."""
        with unfilled():
            model = cls(family, vocabulary)
        allocated(model)
        fill(model, family.init, seed)
        refill_recurrent(model, family.init_recurrent, seed)
        return model

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        held = cache if isinstance(cache, _Turns) else None
        before = None if held is None else held.lengths
        windows = window_sequences(ids, segments, cache)
        real = torch.ones_like(ids, dtype=torch.bool) if segments is None else segments >= 0
        # Embeddings are drawn small for the head's sake; √width brings them to the order of 1 (Vaswani et al. 2017).
        x = self._dropped(self.embedding(ids) * self.embedding.embedding_dim**0.5)
        read, new_encoder = self._encode(x, windows, held)
        ended = (ids == self.family.end) & real
        turn = ended.long().cumsum(1) - ended.long()  # how many turns ended in the row before the token
        opening = beginnings(torch.where(real, 0, -1) if segments is None or held is not None else segments)
        begins = opening.clone()
        begins[:, 1:] |= ended[:, :-1] & real[:, 1:]
        turns = Sequences.of(begins, real)
        x, new_decoder = self._decode(x, read, turns, opening, held)
        if self.query is not None and self.mix is not None:
            if held is None or before is None:
                seen = turn[:, None, :] < turn[:, :, None]
                if segments is not None:
                    seen &= segments[:, None, :] == segments[:, :, None]
                looked = self._look(x, read[-1], seen)
            else:
                turn = turn + held.turn[:, None]
                end = _remember(held, before, read[-1], turn, real)
                looked = self._look(x, held.memory[:, :end], held.turns[:, None, :end] < turn[:, :, None])
            x = torch.tanh(self.mix(torch.cat([x, looked], -1)))
        if held is not None:
            held.states = [*new_encoder, *new_decoder]
            held.turn = held.turn + ended.sum(1)
            last = (real.sum(1, keepdim=True) - 1).clamp(min=0)
            held.fresh = torch.where(real.any(1), ended.gather(1, last)[:, 0], held.fresh)
        return self.norm(x)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head_weight())

    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight

    def new_cache(self, rows: int, length: int) -> Cache:
        encoder, decoder = ([layer.empty(rows) for layer in _layers(stack)] for stack in (self.encoder, self.decoder))
        return _Turns(encoder, decoder, untouched(rows, length, self.embedding.embedding_dim, dtype=self.dtype, device=self.device))

    def set_dropout(self, rate: float) -> None:
        self.drop = rate

    def splits(self, name: str) -> tuple[int, ...]:
        width = self.family.width or 0
        if name.startswith("bridges"):
            return (width,) * (2 if self.family.cell == "lstm" else 1)
        return (width,) * GATES[self.family.cell] if name.endswith(("input.weight", "recurrent.weight")) else ()

    def _encode(self, x: Tensor, windows: Sequences, held: _Turns | None) -> tuple[list[Tensor], list[State]]:
        """For each layer (rows, time, width) of its states, and the states that the rows of a cache have come to."""
        read, kept = [], []
        flat = windows.take(x)
        for number, layer in enumerate(_layers(self.encoder)):
            if held is None:
                flat, _ = layer(flat, windows.sizes, layer.empty(len(windows.first)))
            else:
                old = held.states[number]
                flat, state = layer(flat, windows.sizes, tuple(part.index_select(0, windows.rows) for part in old))
                kept.append(replaced(old, state, windows.rows))
            read.append(windows.put(flat))
            flat = self._dropped(flat)
        return read, kept

    def _decode(
        self, x: Tensor, read: list[Tensor], turns: Sequences, opening: Tensor, held: _Turns | None
    ) -> tuple[Tensor, list[State]]:
        """(rows, time, width) of the decoder's top layer, each turn begun from the encoder's state just before it."""
        kept, flat = [], turns.take(x)
        opens = opening.reshape(-1)[turns.first][:, None]  # turns that begin a window, or go on with a row of the cache
        ends = torch.zeros(turns.shape[0], dtype=torch.long, device=x.device).scatter_reduce(0, turns.rows, turns.last, "amax")
        for number, (layer, bridge) in enumerate(zip(_layers(self.decoder), self.bridges, strict=True)):
            start = read[number].flatten(0, 1)[turns.first - 1]  # the encoder just before the turn
            start = torch.where(opens, 0.0 if held is None else held.states[number][0][turns.rows], start)
            state = cast(State, bridge(start).chunk(2, -1) if layer.cell == "lstm" else (bridge(start),))
            state = (torch.tanh(state[0]), *state[1:])
            if held is not None:
                old = held.states[len(self.encoder) + number]
                going = opens & ~held.fresh[turns.rows, None]
                state = tuple(torch.where(going, own[turns.rows], begun) for own, begun in zip(old, state, strict=True))
            flat, state = layer(flat, turns.sizes, state)
            if held is not None:
                newest = turns.last == ends[turns.rows]
                kept.append(replaced(old, tuple(part[newest] for part in state), turns.rows[newest]))
            flat = self._dropped(flat)
        return turns.put(flat), kept

    def _look(self, x: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        """(rows, time, width): what attention finds in (rows, keys, width) `memory` where (rows, time, keys) `seen`.

        Before the memory stands one place with score and value zero: before a turn has ended it takes all of the attention.
        """
        assert self.query is not None
        memory = F.pad(memory, (0, 0, 1, 0))[:, None]
        bias = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill_(~seen, -torch.inf)
        return attention(self.query(x)[:, None], memory, memory, F.pad(bias, (1, 0))[:, None])[:, 0]

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.drop if self.training else 0.0)


def _layers(stack: nn.ModuleList) -> list[Layer]:
    return cast(list[Layer], list(stack))


def _remember(held: _Turns, before: Tensor, read: Tensor, turn: Tensor, real: Tensor) -> int:
    """Put the encoder's states of new tokens behind those of the rows' `before` tokens; gives how many places are in use."""
    slots = before[:, None] + torch.arange(real.shape[1], device=real.device)
    rows = torch.arange(len(real), device=real.device)[:, None].expand_as(slots)
    held.memory[rows[real], slots[real]] = read[real].to(held.memory.dtype)
    held.turns[rows[real], slots[real]] = turn[real]
    return int(held.lengths.max())
