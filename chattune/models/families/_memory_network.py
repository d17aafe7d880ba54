"""The network of the memory network family. Legend: rows × time tokens; `ages`: how many tokens ago a slot was said, from 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.models import fresh
from chattune.models.language_model import Cache, LanguageModel
from chattune.models.layers import Linear, cache_bias, causal_bias, dropout, window_bias

if TYPE_CHECKING:
    from chattune.models.families.memory_network import MemoryNetwork


class MemoryNetworkModel(LanguageModel):
    """The model that `MemoryNetwork.build` gives; `family` is resolved."""

    family: MemoryNetwork

    def __init__(self, family: MemoryNetwork, vocabulary: int) -> None:
        super().__init__(family, vocabulary)
        assert family.hops and family.width and family.memory
        # Hop k finds by table k and gives from table k + 1; shared weights: by the first and from the second, whatever the hop.
        self.tables = nn.ModuleList(nn.Embedding(vocabulary, family.width) for _ in range(family.tables()))
        self.ages = nn.ModuleList(nn.Embedding(family.memory, family.width) for _ in range(family.tables()))  # newest first
        self.state = Linear(family.width, family.width) if family.weights == "shared" else None
        self.norm = family.norm.build(family.width) if family.norm else None
        self.embedding = None if family.tied else nn.Embedding(vocabulary, family.width)
        self.output = None if family.tied else Linear(family.width, vocabulary)
        self.drop = family.dropout

    @classmethod
    def fresh(cls, family: MemoryNetwork, vocabulary: int, seed: int) -> Self:
        """A model with fresh weights, each drawn from a stream of its own."""
        with fresh.unfilled():
            model = cls(family, vocabulary)
        fresh.allocated(model)
        fresh.fill(model, family.init, seed)
        return model

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        f = self.family
        assert f.hops and f.width and f.memory
        state = self._dropped((self.tables[0] if self.embedding is None else self.embedding)(ids))
        shared, scale = f.weights == "shared", f.width**-0.5
        if cache is None:
            sight: _Sight = _All(ids, segments, f.memory, self.dtype)
        else:
            sight = _Cached(ids, cache, f.memory)
        found = given = None
        for hop in range(f.hops):
            first = 0 if shared else hop
            if found is None or given is None or not shared:
                found, given = sight.slots(first, self.tables[first](ids), self.tables[first + 1](ids))
            asking = (state * scale).to(found.dtype)
            by_age, of_age = (self._ages(table)[: sight.oldest].to(found.dtype) for table in (first, first + 1))
            ages = sight.by_age(asking @ by_age.t())
            weights = torch.softmax(torch.baddbmm(ages, asking, found.transpose(1, 2)), -1)
            answer = weights @ given + sight.of_age(weights) @ of_age
            state = self._after_hop(state, answer.to(state.dtype))
        if cache is not None:
            cache.lengths = cache.lengths + (ids.shape[1] if segments is None else (segments >= 0).sum(1))
        return state

    def _ages(self, table: int) -> Tensor:
        weight: Tensor = self.ages[table].weight  # type: ignore[assignment]
        return weight

    def _after_hop(self, state: Tensor, answer: Tensor) -> Tensor:
        state = (state if self.state is None else self.state(state)) + answer
        bent = round(self.family.nonlinear * state.shape[-1])
        state = torch.cat((F.relu(state[..., :bent]), state[..., bent:]), -1)
        return self._dropped(state if self.norm is None else self.norm(state))

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.drop if self.training else 0.0)

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head_weight())

    def head_weight(self) -> Tensor:
        table: Tensor = (self.tables[-1] if self.output is None else self.output).weight  # type: ignore[assignment]
        return table

    def new_cache(self, rows: int, length: int) -> Cache:
        f = self.family
        assert f.hops and f.width
        dtype = torch.float32 if self.device.type == "cpu" and self.dtype == torch.bfloat16 else self.dtype
        return Cache(1 if f.weights == "shared" else f.hops, rows, 1, length, f.width, dtype=dtype, device=self.device)

    def set_dropout(self, rate: float) -> None:
        self.drop = rate


class _Sight:
    """Which slots a token sees, and the way between scores by age and scores by slot.

    `oldest`: ages that occur; `slots`: what all slots are found by and give, (rows, keys, width) each; `by_age`: (rows, time,
    oldest) scores by age → (rows, time, keys) by slot, with −∞ out of sight; `of_age`: the weights (rows, time, keys) by age.
    """

    oldest: int

    def slots(self, block: int, found: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def by_age(self, scores: Tensor) -> Tensor:
        raise NotImplementedError

    def of_age(self, weights: Tensor) -> Tensor:
        raise NotImplementedError


class _All(_Sight):
    """All tokens at once. A row of scores by age, moved right by its token's place, is a row by slot: done by reading the same
    numbers with rows one shorter, which copies each once where an index would gather and scatter them."""

    def __init__(self, ids: Tensor, segments: Tensor | None, memory: int, dtype: torch.dtype) -> None:
        time = ids.shape[1]
        self.oldest = min(memory, time)
        bias = causal_bias(time, dtype, ids.device, memory) if segments is None else window_bias(segments, dtype, memory)
        self.bias = bias[:, 0]

    def slots(self, block: int, found: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        return found, given

    def by_age(self, scores: Tensor) -> Tensor:
        rows, time, oldest = scores.shape
        wide = oldest + time - 1
        moved = F.pad(scores.flip(2), (0, time)).view(rows, -1)[:, : time * wide].view(rows, time, wide)
        return moved[:, :, oldest - 1 :] + self.bias

    def of_age(self, weights: Tensor) -> Tensor:
        rows, time, _ = weights.shape
        wide = self.oldest + time - 1
        moved = F.pad(F.pad(weights, (self.oldest - 1, 0)).view(rows, -1), (0, time)).view(rows, time, wide + 1)
        return moved[:, :, : self.oldest].flip(2)


class _Cached(_Sight):
    """New tokens of rows that each hold another number of tokens already."""

    def __init__(self, ids: Tensor, cache: Cache, memory: int) -> None:
        self.cache, self.places, self.oldest = cache, cache.slots(ids.shape[1]), memory
        keys = int(self.places.max()) + 1
        self.age = (self.places[:, :, None] - torch.arange(keys, device=ids.device)).clamp_(0, memory - 1)
        self.bias = cache_bias(self.places, cache.keys[0].dtype, memory)

    def slots(self, block: int, found: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.write(block, self.places, found[:, None], given[:, None])
        return keys[:, 0], values[:, 0]

    def by_age(self, scores: Tensor) -> Tensor:
        found = scores.gather(2, self.age)
        return found if self.bias is None else found + self.bias[:, 0]

    def of_age(self, weights: Tensor) -> Tensor:
        rows, time, _ = weights.shape
        return weights.new_zeros(rows, time, self.oldest).scatter_add_(2, self.age, weights)
