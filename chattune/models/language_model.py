"""`LanguageModel`: what every family builds. Ids in, logits out, cached decoding, and parameter groups for optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from chattune.models.families import Family

if TYPE_CHECKING:
    from chattune.tokens.batch import Batch


class LanguageModel(nn.Module):
    """Predicts the next token at every position, from that position and the ones before it.

    Shapes: `ids`, `positions` and `segments` are (rows, time) integers. `positions` default to 0, 1, 2, …; `segments`
    number the windows that share a row, which never see each other; -1 is padding. `hidden` and `head` are apart so that
    a loss computes logits only where there is a target.
    """

    compiles: ClassVar[bool] = True  # tensors have few shapes, so that compiling `hidden` may pay

    def __init__(self, family: Family, vocabulary: int) -> None:
        super().__init__()
        self.family, self.vocabulary = family, vocabulary

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """(rows, time, width). With a `cache` the ids continue what it holds, and it grows by them."""
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, vocabulary) of hidden states (…, width), in the model's dtype."""
        raise NotImplementedError

    def head_weight(self) -> Tensor | None:
        """(vocabulary, width) where `head` is one matrix product with it, so that a loss may take it in pieces; else none."""
        return None

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Logits (rows, time, vocabulary)."""
        return self.head(self.hidden(ids, positions, segments, cache))

    def new_cache(self, rows: int, length: int) -> Cache:
        """An empty memory for decoding `rows` replies of at most `length` tokens, prompt included."""
        raise NotImplementedError

    def set_dropout(self, rate: float) -> None:
        """Let training drop this share of activations (0 keeps all) wherever the family has dropout."""
        raise NotImplementedError

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights by their public names, and the entries of ``config.json`` that other libraries read; none where no other
        library knows the architecture."""
        return dict(self.state_dict()), {}

    def load_exported(self, tensors: Mapping[str, Tensor]) -> None:
        """Take weights named as `exported` names them; names and shapes were checked."""
        self.load_state_dict(dict(tensors), strict=True)

    def public_names(self, name: str) -> tuple[str, ...]:
        """The names in `exported` of the matrices that the parameter `name` holds one above the other (see `splits`)."""
        return (name,)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name; the others are frozen."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def moving(self) -> dict[str, Tensor]:
        """Numbers that training moves without gradients, by name: the averages of batch norms."""
        learning = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        return {name: value for name, value in self.state_dict(keep_vars=True).items() if name not in learning}

    def changing(self) -> dict[str, Tensor]:
        """All that training changes and a checkpoint of it holds: `trainable` and `moving`."""
        return {**self.trainable(), **self.moving()}

    def after_training(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Once the weights to keep are in: what remains to be computed from the training split (nothing, for most families).

        `batches()` begins a pass over the split, every window once.
        """

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for `Optimizer.build`, each parameter that learns once: ``params``, ``names``, ``role``, ``decay``.

        ``splits`` says, for each parameter, the row counts of the matrices that are stored as one (queries, keys and
        values; gate and up), for optimizers that treat a matrix as a whole; ``()`` where it is a single one.
        """
        tables = self.token_tables()
        found: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "embedding": [], "vector": []}
        for name, parameter in self.trainable().items():
            role = "embedding" if name in tables else "matrix" if parameter.ndim >= 2 else "vector"
            found[role].append((name, parameter))
        return [
            {
                "params": [parameter for _, parameter in items], "names": [name for name, _ in items], "role": role,
                "decay": role != "vector", "splits": [self.splits(name) for name, _ in items],
            }
            for role, items in found.items()
            if items
        ]  # fmt: skip

    def token_tables(self) -> set[str]:
        """Names of the parameters that hold a row for each token: embeddings and the head."""
        return {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Embedding)} | {"output.weight"}

    def splits(self, name: str) -> tuple[int, ...]:
        """Row counts of the matrices that the parameter `name` holds one above the other; ``()`` for a single one."""
        return ()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class Cache:
    """Keys and values of the tokens so far, in a static block of memory; every row has its own length.

    `lengths`: (rows,) tokens held. Rows of a ragged batch are padded on the right: a forward pass with ``segments`` of -1
    at the padding counts only real tokens, and what padding wrote is overwritten by the tokens that follow.
    """

    rewinds: ClassVar[bool] = True  # a row can go on from any earlier place
    joins: ClassVar[bool] = True  # rows of other lengths and ages can be taken together (`at`)
    pads: bool = True  # padding may follow what a row holds already

    def __init__(self, layers: int, rows: int, heads: int, length: int, head: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = [untouched(rows, heads, length, head, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [untouched(rows, heads, length, head, dtype=dtype, device=device) for _ in range(layers)]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.picked: Tensor | None = None  # (rows,) which rows of the blocks are meant, where it is not all of them
        self._written: tuple[Tensor, Tensor, int] | None = None  # slots, their `_places`, and the end

    @property
    def length(self) -> int:
        """Tokens that a row can hold."""
        return self.keys[0].shape[2]

    def slots(self, time: int) -> Tensor:
        """(rows, time) places of the next `time` tokens, which are also their positions."""
        slots = self.lengths[:, None] + torch.arange(time, device=self.lengths.device)
        if int(slots[:, -1].max()) >= self.length:
            raise ValueError(f"the cache holds {self.length} tokens a row; {int(slots.max()) + 1} were asked for")
        return slots

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (rows, heads, time, head) keys and values at `slots`; gives all up to the last slot written."""
        block, head = self.keys[layer], keys.shape[3]
        if self._written is None or self._written[0] is not slots:  # all layers of a pass write to the same places
            self._written = slots, *self._places(slots, keys.shape[1])
        _, index, end = self._written
        block.view(-1, head).index_copy_(0, index, keys.reshape(-1, head).to(block.dtype))
        self.values[layer].view(-1, head).index_copy_(0, index, values.reshape(-1, head).to(block.dtype))
        return self.read(layer, end)

    def _places(self, slots: Tensor, heads: int) -> tuple[Tensor, int]:
        """(rows · heads · time,) where `slots` lie among all (head,) vectors of a block, and the end of the last one."""
        row = torch.arange(len(slots), device=slots.device) if self.picked is None else self.picked
        above = row[:, None] * heads + torch.arange(heads, device=slots.device)  # (rows, heads)
        index = (above[:, :, None] * self.keys[0].shape[2] + slots[:, None]).flatten()
        return index, int(slots[:, -1].max()) + 1

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """(rows, heads, end, head) keys and values of the first `end` slots."""
        keys, values = self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
        return (keys, values) if self.picked is None else (keys.index_select(0, self.picked), values.index_select(0, self.picked))

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order."""
        self.keys = [block.index_select(0, rows) for block in self.keys]
        self.values = [block.index_select(0, rows) for block in self.values]
        self.lengths = self.lengths.index_select(0, rows)

    def at(self, rows: Sequence[int], starts: Sequence[int]) -> Self:
        """These rows as a cache of their own, each cut to the tokens before its start; after a pass, `put` brings them back.

        Keys and values are not copied: neighbours are a part of the block, others are found through `picked`. Where a cache does
        not rewind, a row starts where it stands, or at 0.
        """
        part = copy(self)
        part.lengths = torch.tensor(starts, device=self.lengths.device)
        if _neighbours(rows):
            first, last = rows[0], rows[-1] + 1
            part.keys, part.values = [block[first:last] for block in self.keys], [block[first:last] for block in self.values]
        else:
            part.picked = torch.tensor(rows, device=self.lengths.device)
        return part

    def put(self, rows: Sequence[int], part: Self) -> None:
        """Take back what became of the rows that `at` gave."""
        put_rows(self.lengths, rows, part.lengths)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Let row `target` hold the first `length` tokens of row `source`."""
        for blocks in (self.keys, self.values):
            for block in blocks:
                block[target, :, :length] = block[source, :, :length]
        self.lengths[target] = length


def untouched(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On the processor the system gives memory only for what is written, so that a cache costs what it holds."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    width = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * width), dtype=np.uint8)).view(dtype)


def take_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of (rows, …): a part of the same memory where they are neighbours, else a copy."""
    if _neighbours(rows):
        return values[rows[0] : rows[-1] + 1]
    return values.index_select(0, torch.tensor(rows, device=values.device))


def put_rows(values: Tensor, rows: Sequence[int], part: Tensor) -> None:
    """Write rows back that `take_rows` gave, or what took their place."""
    if not _neighbours(rows):
        values.index_copy_(0, torch.tensor(rows, device=values.device), part)
    elif part.data_ptr() != values[rows[0]].data_ptr():
        values[rows[0] : rows[-1] + 1] = part


def _neighbours(rows: Sequence[int]) -> bool:
    return all(after == before + 1 for before, after in pairwise(rows))
