"""The network of the convolutional family: taps side by side, one matrix product, a gate, and back to the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.models.fresh import allocated, fill, unfilled
from chattune.models.language_model import Cache, LanguageModel
from chattune.models.layers import Linear, dropout
from chattune.models.states import StateCache
from chattune.models.unpacked import ages

if TYPE_CHECKING:
    from chattune.models.families.convolution import Convolution


class _Block(nn.Module):
    """(rows, time, width) → the same; what it reads of tokens before the first one stands in `past`."""

    def __init__(self, family: Convolution, distance: int) -> None:
        super().__init__()
        assert family.width and family.hidden
        self.distance, self.kernel, norm = distance, family.kernel, family.norm
        self.gated: nn.Module = Linear(family.kernel * family.width, 2 * family.hidden)
        self.output: nn.Module = Linear(family.hidden, family.width)
        self.input_norm: nn.Module = nn.Identity()
        self.activation_norm: nn.Module = nn.Identity()
        if norm is not None:
            self.gated, self.output = norm.wrap(self.gated), norm.wrap(self.output)
            if norm.place == "activation":
                self.activation_norm = norm.build(family.hidden)
            else:
                self.input_norm = norm.build(family.width)
        self.drop = 0.0

    @property
    def reach(self) -> int:
        """Tokens before the current one that the block sees."""
        return (self.kernel - 1) * self.distance

    def forward(self, x: Tensor, past: Tensor, age: Tensor | None) -> tuple[Tensor, Tensor]:
        """`past`: (rows, reach, width), zeros before the beginning; `age`: (rows, time, 1) where a row holds several windows.
        Gives the new stream and (rows, reach + time, width) of all that was read."""
        time = x.shape[1]
        read = torch.cat([past, self.input_norm(x)], 1)
        taps = []
        for back in range(0, self.reach + 1, self.distance):
            start = self.reach - back
            tap = read[:, start : start + time]
            taps.append(tap if age is None or back == 0 else tap.masked_fill(age < back, 0.0))
        gated = self.activation_norm(F.glu(self.gated(torch.cat(taps, -1)), -1))
        return x + dropout(self.output(gated), self.drop if self.training else 0.0), read


class ConvolutionModel(LanguageModel):
    """The network that `Convolution.build` gives; `family` is resolved."""

    family: Convolution

    def __init__(self, family: Convolution, vocabulary: int) -> None:
        super().__init__(family, vocabulary)
        assert family.layers and family.width
        self.embedding = nn.Embedding(vocabulary, family.width)
        self.blocks = nn.ModuleList(_Block(family, distance) for distance in family.distances())
        late = family.norm is None or family.norm.place == "activation"
        self.norm = nn.Identity() if late or family.norm is None else family.norm.build(family.width)
        self.output = None if family.tied else Linear(family.width, vocabulary)
        self.drop = 0.0
        self.set_dropout(family.dropout)

    @classmethod
    def fresh(cls, family: Convolution, vocabulary: int, seed: int) -> Self:
        """A model with fresh weights, each drawn from a stream of its own, named by the seed and the parameter."""
        with unfilled():
            model = cls(family, vocabulary)
        allocated(model)
        fill(model, family.init, seed, outputs=family.init_outputs, branches=family.layers or 1)
        return model

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        # Embeddings are drawn small for the head's sake; √width brings them to the order of 1 (Vaswani et al. 2017).
        x = dropout(self.embedding(ids) * self.embedding.embedding_dim**0.5, self.drop if self.training else 0.0)
        if isinstance(cache, StateCache):
            return self.norm(self._continued(x, cache, cache.advance(ids.shape[1], segments)))  # type: ignore[no-any-return]
        age = None if segments is None else ages(segments)[..., None]
        for block in self._blocks():
            x, _ = block(x, x.new_zeros(len(x), block.reach, x.shape[-1]), age)
        return self.norm(x)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head_weight())

    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight

    def new_cache(self, rows: int, length: int) -> Cache:
        empty = self.embedding.weight.new_zeros
        return StateCache([(empty(rows, block.reach, self.embedding.embedding_dim),) for block in self._blocks()], length)

    def set_dropout(self, rate: float) -> None:
        for module in self.modules():
            if isinstance(module, (ConvolutionModel, _Block)):
                module.drop = rate

    def splits(self, name: str) -> tuple[int, ...]:
        return (self.family.hidden or 0,) * 2 if name.endswith("gated.weight") else ()

    def _continued(self, x: Tensor, cache: StateCache, count: Tensor) -> Tensor:
        """The blocks over tokens that continue what the cache holds, of which each row counts `count`; it keeps what it will see."""
        for number, block in enumerate(self._blocks()):
            x, read = block(x, cache.states[number][0], None)
            place = count[:, None] + torch.arange(block.reach, device=x.device)  # the last `reach` before a row's padding
            cache.states[number] = (read.gather(1, place[..., None].expand(-1, -1, read.shape[-1])),)
        return x

    def _blocks(self) -> list[_Block]:
        return cast(list[_Block], list(self.blocks))
