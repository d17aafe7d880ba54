"""The network of the encoder–decoder family: two stacks over one stream of tokens, told apart by who may see whom.

A token's turn is the number of end tokens before it. The encoder sees turns up to its own; the decoder its own turn up to itself;
cross-attention the turns before its own. The end token belongs to the turn that it ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.models import fresh
from chattune.models.language_model import Cache, LanguageModel, put_rows, take_rows
from chattune.models.layers import Linear, RMSNorm, attention, dropout, rotary, rotate, swiglu

if TYPE_CHECKING:
    from chattune.models.families.encoder_decoder import EncoderDecoder

_NEVER = 1 << 40  # the turn of a slot that holds no token: later than any


@dataclass(frozen=True)
class _Place:
    """Where tokens stand, for rotary positions, and whom they see: (rows, 1, time, keys) of 0 and −∞."""

    cos: Tensor
    sin: Tensor
    bias: Tensor


class _Attention(nn.Module):
    """Queries of some tokens over keys and values of the same or other ones. `nothing`: with a slot that is always in sight."""

    def __init__(self, family: EncoderDecoder, nothing: bool = False) -> None:
        super().__init__()
        assert family.width and family.heads
        width, self.heads, self.head = family.width, family.heads, family.width // family.heads
        self.query, self.key_value, self.output = Linear(width, width), Linear(width, 2 * width), Linear(width, width)
        self.query_norm, self.key_norm = RMSNorm(self.head, 1e-5), RMSNorm(self.head, 1e-5)
        self.bias_key = nn.Parameter(torch.empty(width)) if nothing else None
        self.bias_value = nn.Parameter(torch.empty(width)) if nothing else None
        self.drop = 0.0

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, heads, time, head) each."""
        k, v = self.key_value(x).view(*x.shape[:2], 2 * self.heads, self.head).split(self.heads, dim=2)
        return rotate(self.key_norm(k), cos, sin).transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, place: _Place, k: Tensor, v: Tensor) -> Tensor:
        rows, time, _ = x.shape
        q = self.query(x).view(rows, time, self.heads, self.head)
        q = rotate(self.query_norm(q), place.cos, place.sin).transpose(1, 2).to(k.dtype)
        if self.bias_key is not None and self.bias_value is not None:
            k = torch.cat((self._slot(self.bias_key, rows, k.dtype), k), 2)
            v = torch.cat((self._slot(self.bias_value, rows, v.dtype), v), 2)
        mixed = attention(q, k, v, place.bias.to(k.dtype), drop=self.drop if self.training else 0.0)
        return self.output(mixed.transpose(1, 2).reshape(rows, time, -1).to(x.dtype))  # type: ignore[no-any-return]

    def _slot(self, nothing: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        return nothing.to(dtype).view(1, self.heads, 1, self.head).expand(rows, -1, -1, -1)


class _FeedForward(nn.Module):
    def __init__(self, family: EncoderDecoder) -> None:
        super().__init__()
        assert family.width and family.hidden
        self.gate_up, self.output = Linear(family.width, 2 * family.hidden), Linear(family.hidden, family.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(swiglu(self.gate_up(x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """A branch of self-attention, in the decoder one of cross-attention, and one of feed-forward."""

    def __init__(self, family: EncoderDecoder, crossing: bool) -> None:
        super().__init__()
        assert family.width
        self.attention_norm, self.attention = family.norm.build(family.width), _Attention(family)
        self.cross_norm = family.norm.build(family.width) if crossing else None
        self.cross = _Attention(family, nothing=True) if crossing else None
        self.feed_forward_norm, self.feed_forward = family.norm.build(family.width), _FeedForward(family)
        self.drop = 0.0

    def forward(self, x: Tensor, place: _Place, memory: _Memory | None, store: _Store | None) -> Tensor:
        """`memory`: what the decoder looks back at; `store`: where keys and values of these tokens are put and found again."""
        drop = self.drop if self.training else 0.0
        normed = self.attention_norm(x)
        k, v = self.attention.keys_values(normed, place.cos, place.sin)
        k, v = (k, v) if store is None else store.write(k, v)
        x = x + dropout(self.attention(normed, place, k, v), drop)
        if self.cross is not None and self.cross_norm is not None:
            assert memory is not None
            x = x + dropout(self.cross(self.cross_norm(x), memory.place, memory.keys, memory.values), drop)
        return x + dropout(self.feed_forward(self.feed_forward_norm(x)), drop)


@dataclass(frozen=True)
class _Memory:
    """What one layer of the decoder sees of the encoder: keys, values, and which of them which token may see."""

    keys: Tensor
    values: Tensor
    place: _Place


def _crossed(block: nn.Module, encoded: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that a block of the decoder makes of the encoder's result."""
    assert isinstance(block, _Block) and block.cross is not None
    return block.cross.keys_values(encoded, cos, sin)


class TurnCache(Cache):
    """Tokens so far with their turns; keys and values of encoder, cross-attention and decoder, `layers` blocks of each.

    `encoded`: (rows,) tokens whose turns have ended and went through the encoder. Blocks have one slot more than a row can hold,
    where the padding of a ragged pass is put.
    """

    def __init__(self, layers: int, rows: int, heads: int, length: int, head: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(3 * layers, rows, heads, length + 1, head, dtype=dtype, device=device)
        self.layers = layers
        self.ids = torch.zeros(rows, length + 1, dtype=torch.long, device=device)
        self.turns = torch.full((rows, length + 1), _NEVER, device=device)
        self.turn, self.encoded = torch.zeros_like(self.lengths), torch.zeros_like(self.lengths)

    @property
    def length(self) -> int:
        return self.keys[0].shape[2] - 1

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        for name in ("ids", "turns", "turn", "encoded"):
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def at(self, rows: Sequence[int], starts: Sequence[int]) -> Self:
        part = super().at(rows, starts)
        part.ids, turns, start = take_rows(self.ids, rows), take_rows(self.turns, rows), part.lengths[:, None]
        # A token's turn does not depend on the token itself, so that the one forgotten tells in which turn the row goes on.
        known = turns.gather(1, start)[:, 0]
        part.turn = torch.where(known == _NEVER, take_rows(self.turn, rows), known).masked_fill(part.lengths == 0, 0)
        part.turns = turns.masked_fill(torch.arange(turns.shape[1], device=turns.device) >= start, _NEVER)
        # Of what went through the encoder, turns stay that end before the last token kept: others may end otherwise now.
        last = part.turns.gather(1, (start - 1).clamp(min=0))
        whole = (part.turns < torch.where(start > 0, last, 0)).sum(1)
        part.encoded = torch.minimum(take_rows(self.encoded, rows), whole)
        return part

    def put(self, rows: Sequence[int], part: Self) -> None:
        super().put(rows, part)
        for name in ("ids", "turns", "turn", "encoded"):
            put_rows(getattr(self, name), rows, getattr(part, name))

    def copy_row(self, source: int, target: int, length: int) -> None:
        super().copy_row(source, target, length)
        for name in ("ids", "turns", "turn", "encoded"):
            values = getattr(self, name)
            values[target] = values[source]


@dataclass(frozen=True)
class _Store:
    """One block of a cache: where to write, and how many slots to give."""

    cache: TurnCache
    layer: int
    slots: Tensor
    end: int

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.write(self.layer, self.slots, k, v)
        return keys[:, :, : self.end], values[:, :, : self.end]


class EncoderDecoderModel(LanguageModel):
    """The model that `EncoderDecoder.build` gives; `family` is resolved."""

    family: EncoderDecoder

    def __init__(self, family: EncoderDecoder, vocabulary: int) -> None:
        super().__init__(family, vocabulary)
        assert family.layers and family.width
        self.embedding = nn.Embedding(vocabulary, family.width)
        self.encoder = nn.ModuleList(_Block(family, crossing=False) for _ in range(family.layers))
        self.encoder_norm = family.norm.build(family.width)
        self.decoder = nn.ModuleList(_Block(family, crossing=True) for _ in range(family.layers))
        self.norm = family.norm.build(family.width)
        self.output = None if family.tied else Linear(family.width, vocabulary)
        self.drop = 0.0
        self.set_dropout(family.dropout)

    @classmethod
    def fresh(cls, family: EncoderDecoder, vocabulary: int, seed: int) -> Self:
        """A model with fresh weights, each drawn from a stream of its own."""
        assert family.layers
        with fresh.unfilled():
            model = cls(family, vocabulary)
        fresh.allocated(model)
        fresh.fill(model, family.init, seed, outputs=family.init_outputs, branches=5 * family.layers)
        return model

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        if cache is not None:
            assert isinstance(cache, TurnCache)
            return self._continued(ids, segments, cache)
        time = ids.shape[1]
        if positions is None:
            positions = torch.arange(time, device=ids.device)[None]
        ended = (ids == self.family.end).long()
        turns = ended.cumsum(1) - ended
        apart = turns[:, :, None] - turns[:, None, :]  # (rows, time, keys) turns that the key's is before the token's
        same = torch.ones_like(apart, dtype=torch.bool) if segments is None else segments[:, :, None] == segments[:, None, :]
        cos, sin = self._turned(positions)
        x = embedded = self._embedded(ids)
        place = _Place(cos, sin, self._bias(same & (apart >= 0)))
        for block in self.encoder:
            x = block(x, place, None, None)
        encoded = self.encoder_norm(x)
        x, place = embedded, _Place(cos, sin, self._bias((same & (apart == 0)).tril()))
        looking_back = _Place(cos, sin, F.pad(self._bias(same & (apart > 0)), (1, 0)))  # the slot of nothing stands first
        for block in self.decoder:
            keys, values = _crossed(block, encoded, cos, sin)
            x = block(x, place, _Memory(keys, values, looking_back), None)
        return self.norm(x)  # type: ignore[no-any-return]

    def _continued(self, ids: Tensor, segments: Tensor | None, cache: TurnCache) -> Tensor:
        slots = cache.slots(ids.shape[1])
        real = torch.ones_like(ids, dtype=torch.bool) if segments is None else segments >= 0
        ended = ((ids == self.family.end) & real).long()
        turns = torch.where(real, cache.turn[:, None] + ended.cumsum(1) - ended, _NEVER)
        cache.ids.scatter_(1, slots, ids)
        cache.turns.scatter_(1, slots, turns)
        cache.turn = cache.turn + ended.sum(1)
        # The turn of each row's last token goes on, or ends with it; those before it have ended, and are needed now.
        current = torch.where(real, turns, -1).amax(1)
        self._encode(cache, (cache.turns < current[:, None]).sum(1))

        cos, sin = self._turned(slots)
        end, past = int(slots[:, -1].max()) + 1, int(cache.encoded.max())
        known = cache.turns[:, None, :end]
        keys = torch.arange(end, device=ids.device)
        place = _Place(cos, sin, self._bias((known == turns[:, :, None]) & (keys <= slots[:, :, None])))
        looking_back = _Place(cos, sin, F.pad(self._bias(known[:, :, :past] < turns[:, :, None]), (1, 0)))
        x = self._embedded(ids)
        for layer, block in enumerate(self.decoder):
            crossed = cache.layers + layer
            memory = _Memory(*cache.read(crossed, past), looking_back)
            x = block(x, place, memory, _Store(cache, 2 * cache.layers + layer, slots, end))
        cache.lengths = cache.lengths + real.sum(1)
        return self.norm(x)  # type: ignore[no-any-return]

    def _encode(self, cache: TurnCache, until: Tensor) -> None:
        """Put what stands between the tokens already encoded and `until` (rows,), whole turns, through the encoder."""
        count = int((until - cache.encoded).max())
        if count <= 0:
            return
        slots = cache.encoded[:, None] + torch.arange(count, device=until.device)
        real = slots < until[:, None]
        slots = torch.where(real, slots, cache.length)  # padding goes to the slot beyond
        cos, sin = self._turned(slots)
        end = int(until.max())
        keys = torch.arange(end, device=until.device)
        turns = cache.turns.gather(1, slots)
        visible = (cache.turns[:, None, :end] <= turns[:, :, None]) & (keys < until[:, None])[:, None]
        place = _Place(cos, sin, self._bias(visible | ~real[:, :, None]))  # padding sees all: a row of nothing but −∞ would give NaN
        x = self._embedded(cache.ids.gather(1, slots))
        for layer, block in enumerate(self.encoder):
            x = block(x, place, None, _Store(cache, layer, slots, end))
        encoded = self.encoder_norm(x)
        for layer, block in enumerate(self.decoder):
            cache.write(cache.layers + layer, slots, *_crossed(block, encoded, cos, sin))
        cache.encoded = torch.maximum(cache.encoded, until)

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head_weight())

    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight

    def new_cache(self, rows: int, length: int) -> TurnCache:
        f = self.family
        assert f.layers and f.width and f.heads
        # On the processor attention over one query is several times faster in float32 than in bfloat16.
        dtype = torch.float32 if self.device.type == "cpu" and self.dtype == torch.bfloat16 else self.dtype
        return TurnCache(f.layers, rows, f.heads, length, f.width // f.heads, dtype=dtype, device=self.device)

    def set_dropout(self, rate: float) -> None:
        for module in self.modules():
            if isinstance(module, (EncoderDecoderModel, _Block, _Attention)):
                module.drop = rate

    def splits(self, name: str) -> tuple[int, ...]:
        f = self.family
        assert f.width and f.hidden
        if name.endswith("key_value.weight"):
            return (f.width, f.width)
        return (f.hidden, f.hidden) if name.endswith("gate_up.weight") else ()

    def _embedded(self, ids: Tensor) -> Tensor:
        return dropout(self.embedding(ids), self.drop if self.training else 0.0)

    def _turned(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        f = self.family
        assert f.width and f.heads
        return rotary(positions, f.width // f.heads, f.rope_theta, self.dtype)

    def _bias(self, visible: Tensor) -> Tensor:
        """(rows, 1, time, keys): 0 where `visible`, −∞ elsewhere."""
        return torch.zeros(visible.shape, dtype=self.dtype, device=visible.device).masked_fill_(~visible, -math.inf)[:, None]
