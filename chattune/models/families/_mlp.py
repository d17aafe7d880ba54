"""The network of the feed-forward family: a window of embeddings side by side, hidden layers, and a projection to the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.models.activations import Activation
from chattune.models.fresh import allocated, fill, unfilled
from chattune.models.language_model import Cache, LanguageModel, put_rows, take_rows
from chattune.models.layers import Linear, dropout

if TYPE_CHECKING:
    from chattune.models.families.mlp import MLP
    from chattune.tokens.batch import Batch


class _Layer(nn.Module):
    """(…, inputs) → (…, hidden): linear map, norm, activation; or the norm after the activation where that is its place."""

    def __init__(self, family: MLP, inputs: int) -> None:
        super().__init__()
        assert family.hidden and family.biases is not None
        linear = nn.Linear(inputs, family.hidden, bias=family.biases)
        self.linear = linear if family.norm is None else family.norm.wrap(linear)
        norm = nn.Identity() if family.norm is None else family.norm.build(family.hidden)
        late = family.norm is not None and family.norm.place == "activation"
        self.input_norm: nn.Module = nn.Identity() if late else norm
        self.activation_norm: nn.Module = norm if late else nn.Identity()
        self.activation = Activation(family.activation)
        self.residual = family.residual and inputs == family.hidden
        self.drop = 0.0

    def forward(self, x: Tensor) -> Tensor:
        given = self.activation_norm(self.activation(self.input_norm(self.linear(x))))
        given = dropout(given, self.drop if self.training else 0.0)
        return x + given if self.residual else given


class MLPModel(LanguageModel):
    """The network that `MLP.build` gives; `family` is resolved."""

    family: MLP

    def __init__(self, family: MLP, vocabulary: int) -> None:
        super().__init__(family, vocabulary)
        assert family.layers and family.width and family.hidden
        self.embedding = nn.Embedding(vocabulary, family.width)
        sides = [family.window * family.width] + [family.hidden] * (family.layers - 1)
        self.layers = nn.ModuleList(_Layer(family, inputs) for inputs in sides)
        self.projection = Linear(family.hidden, family.width)
        self.output = None if family.tied else Linear(family.width, vocabulary)
        self.mixes = family.norm is not None and not family.norm.per_token
        self.drop = 0.0
        self.set_dropout(family.dropout)

    @classmethod
    def fresh(cls, family: MLP, vocabulary: int, seed: int) -> Self:
        """A model with fresh weights, each drawn from a stream of its own, named by the seed and the parameter."""
        with unfilled():
            model = cls(family, vocabulary)
        allocated(model)
        fill(model, family.init, seed)
        return model

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        seen, there = self._before(ids, segments, cache)
        x = self._windows(seen, there, ids.shape[1])
        real = segments >= 0 if self.mixes and segments is not None else None
        if real is None:
            return self._through(x)
        # A norm over tokens must not count padding: only real tokens pass, and padding gets zeros.
        passed = self._through(x[real])
        return passed.new_zeros(*ids.shape, passed.shape[-1]).masked_scatter(real[..., None], passed)

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head_weight())

    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight

    def new_cache(self, rows: int, length: int) -> Cache:
        return _Recent(rows, length, self.family.window - 1, self.device)

    def set_dropout(self, rate: float) -> None:
        for module in self.modules():
            if isinstance(module, (MLPModel, _Layer)):
                module.drop = rate

    def after_training(self, batches: Callable[[], Iterable[Batch]]) -> None:
        from chattune.models.norms._batch_norm import take_whole_statistics

        def look(batch: Batch) -> None:
            MLPModel.hidden(self, batch.inputs, batch.positions, batch.segments)  # never the one compiled for training

        training = self.training
        self.eval()
        take_whole_statistics(self, lambda: map(look, (batch.to(self.device) for batch in batches())))
        self.train(training)

    def _before(self, ids: Tensor, segments: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """(rows, window − 1 + time) ids with what stands before them, and to which window each belongs: another number, another
        window; places that hold nothing have −2. A cache is moved on."""
        back = self.family.window - 1
        if isinstance(cache, _Recent):
            seen = torch.cat([cache.ids, ids], 1)
            cache.push(seen, ids.shape[1], segments)
            return seen.clamp(min=0), torch.where(seen < 0, -2, 0)
        window = torch.zeros_like(ids) if segments is None else segments.to(ids.dtype)
        return F.pad(ids, (back, 0)), F.pad(window, (back, 0), value=-2)

    def _windows(self, seen: Tensor, window: Tensor, time: int) -> Tensor:
        """(rows, time, window · width): the embeddings of the current token, the one before, …, with zeros beyond the beginning."""
        size = self.family.window
        # Embeddings are drawn small for the head's sake; √width brings them to the order of 1 (Vaswani et al. 2017).
        x = dropout(self.embedding(seen) * seen.new_tensor(self.embedding.embedding_dim).sqrt(), self.drop if self.training else 0.0)
        own, parts = window[:, size - 1 :], []
        for start in range(size - 1, -1, -1):
            same = window[:, start : start + time] == own
            parts.append(x[:, start : start + time] * same[..., None])
        return torch.cat(parts, -1)

    def _through(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.projection(x)  # type: ignore[no-any-return]


class _Recent(Cache):
    """The ids that the next token's window still sees: (rows, window − 1), with −1 where there is none."""

    rewinds: ClassVar[bool] = False

    def __init__(self, rows: int, length: int, back: int, device: torch.device) -> None:
        super().__init__(0, rows, 1, length, 1, dtype=torch.float32, device=device)
        self.room = length
        self.ids = torch.full((rows, back), -1, device=device)

    @property
    def length(self) -> int:
        return self.room

    def push(self, seen: Tensor, time: int, segments: Tensor | None) -> None:
        """Take the last ids of `seen`, which are the cache's own and `time` new ones, padded on the right where segments are −1."""
        self.slots(time)  # refuses more than the cache holds
        count = torch.full_like(self.lengths, time) if segments is None else (segments >= 0).sum(1)
        places = count[:, None] + torch.arange(self.ids.shape[1], device=seen.device)
        self.ids, self.lengths = seen.gather(1, places), self.lengths + count

    def select(self, rows: Tensor) -> None:
        self.ids, self.lengths = self.ids.index_select(0, rows), self.lengths.index_select(0, rows)

    def at(self, rows: Sequence[int], starts: Sequence[int]) -> Self:
        part = super().at(rows, starts)
        part.ids = take_rows(self.ids, rows).masked_fill(part.lengths[:, None] == 0, -1)
        return part

    def put(self, rows: Sequence[int], part: Self) -> None:
        super().put(rows, part)
        put_rows(self.ids, rows, part.ids)
