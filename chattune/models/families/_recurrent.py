"""The network of RNN, LSTM and GRU. Windows become sequences of their own, so that torch's kernels begin each with an empty state.

Legend: n tokens of s sequences in the order of `Sequences`; `gates` matrices side by side, in torch's order: LSTM input, forget, new,
output; GRU reset, update, new. With a norm in the cell the steps are written out, since no kernel knows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.core.seeds import derived
from chattune.models import recurrence
from chattune.models.families._recurrent_family import GATES
from chattune.models.fresh import Settling, allocated, fill, unfilled
from chattune.models.initializers import Place
from chattune.models.language_model import Cache, LanguageModel
from chattune.models.layers import Linear, RMSNorm, dropout
from chattune.models.states import StateCache
from chattune.models.unpacked import Sequences, beginnings

if TYPE_CHECKING:
    from chattune.models.families._recurrent_family import Cell, RecurrentFamily
    from chattune.models.initializers import Initializer
    from chattune.models.norms import Norm

EPSILON = 1e-5  # of the norm before the head
State = tuple[Tensor, ...]  # (s, width) each: hidden, and for an LSTM the cell
Step = Callable[[Tensor, Tensor, State, "Layer"], State]


class Layer(Settling):
    """One recurrent layer: (n, inputs) → (n, width), each sequence from a state given to one that is given back."""

    def __init__(self, cell: Cell, inputs: int, width: int, norm: Norm | None = None, memory: float | None = None) -> None:
        super().__init__()
        self.cell, self.width, self.memory = cell, width, memory
        gates = self.gates
        self.input: nn.Module = Linear(inputs, gates * width)
        self.recurrent: nn.Module = Linear(width, gates * width)
        if norm is not None:
            self.input, self.recurrent = norm.wrap(self.input), norm.wrap(self.recurrent)
        self.bias = nn.Parameter(torch.empty(gates * width))
        # The new state of a GRU has a bias of its own inside the reset gate; other cells add their two biases anyway.
        self.bias_recurrent = nn.Parameter(torch.empty(width)) if cell == "gru" else None
        within = norm is not None and norm.parameters(width) > 0
        self.norms = nn.ModuleList(norm.build(width) for _ in range(gates)) if norm is not None and within else None

    @property
    def gates(self) -> int:
        return GATES[self.cell]

    def empty(self, count: int) -> State:
        """States before anything was read."""
        zero = self.bias.new_zeros(count, self.width)
        return (zero, zero) if self.cell == "lstm" else (zero,)

    def settle(self) -> None:
        if self.cell == "rnn":
            return
        # The LSTM's forget gate, the GRU's update gate: what they hold is multiplied by σ(bias) a token, in both.
        gate = self.bias.detach()[self.width : 2 * self.width]
        gate.fill_(math.log(self.memory - 1) if self.memory is not None else 0.0)

    def forward(self, x: Tensor, sizes: Tensor, state: State) -> tuple[Tensor, State]:
        if self.norms is not None:
            return self._steps(x, sizes, state)
        if self.cell == "lstm" or x.is_cuda:
            return self._kernel(x, sizes, state)
        net = F.linear(x, _matrix(self.input), self.bias)
        if self.bias_recurrent is not None:
            out = recurrence.gru(net, _matrix(self.recurrent), self.bias_recurrent, state[0], sizes)
        else:
            out = recurrence.rnn(net, _matrix(self.recurrent), state[0], sizes)
        return out, (recurrence.final(out, sizes),)

    def _kernel(self, x: Tensor, sizes: Tensor, state: State) -> tuple[Tensor, State]:
        """The layer by torch's own kernel (cuDNN's on a GPU)."""
        other = torch.zeros_like(self.bias)
        if self.bias_recurrent is not None:
            other = torch.cat([other[: 2 * self.width], self.bias_recurrent])
        weights = [_matrix(self.input), _matrix(self.recurrent), self.bias, other]
        packed = (True, 1, 0.0, self.training, False)  # biases, layers, dropout, training, bidirectional
        if self.cell == "lstm":
            out, h, c = torch.lstm(x, sizes, (state[0][None], state[1][None]), weights, *packed)
            return out, (h[0], c[0])
        kernel = torch.gru if self.cell == "gru" else torch.rnn_tanh
        out, h = kernel(x, sizes, state[0][None], weights, *packed)
        return out, (h[0],)

    def _steps(self, x: Tensor, sizes: Tensor, state: State) -> tuple[Tensor, State]:
        """The same, step by step, with a norm on the net input of each gate."""
        step: Step = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}[self.cell]
        read = self.input(x)
        matrix = _matrix(self.recurrent)
        outs, ended, start = [], [], 0
        for size in sizes.tolist():
            if size < len(state[0]):  # the shortest sequences stand last, and have ended
                ended.append(tuple(part[size:] for part in state))
                state = tuple(part[:size] for part in state)
            state = step(read[start : start + size], state[0] @ matrix.t(), state, self)
            outs.append(state[0])
            start += size
        ended.append(state)
        return torch.cat(outs), tuple(torch.cat(parts) for parts in zip(*reversed(ended), strict=True))

    def net(self, gate: int, z: Tensor) -> Tensor:
        """(s, width): N(z) + b of one gate. The bias stands after the norm, which would take it away."""
        assert self.norms is not None
        part = self.norms[gate](z)
        return part + self.bias[gate * self.width : (gate + 1) * self.width]  # type: ignore[no-any-return]


def _rnn(read: Tensor, recalled: Tensor, state: State, layer: Layer) -> State:
    """``h = tanh(N(U h + W x) + b)``. Source: Ba et al. 2016, section 3.1 (their f(LN(z)), with the bias outside)."""
    return (torch.tanh(layer.net(0, read + recalled)),)


def _lstm(read: Tensor, recalled: Tensor, state: State, layer: Layer) -> State:
    """``c = σ(f) c + σ(i) tanh(g)``, ``h = σ(o) tanh(c)``, each gate normalised by itself."""
    i, f, g, o = (layer.net(gate, z) for gate, z in enumerate((read + recalled).chunk(4, -1)))
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(read: Tensor, recalled: Tensor, state: State, layer: Layer) -> State:
    """``h = (1 − z) n + z h`` with ``n = tanh(N(W x + r (U h + b')) + b)``."""
    assert layer.bias_recurrent is not None
    (read_r, read_z, read_n), (back_r, back_z, back_n) = read.chunk(3, -1), recalled.chunk(3, -1)
    r, z = torch.sigmoid(layer.net(0, read_r + back_r)), torch.sigmoid(layer.net(1, read_z + back_z))
    new = torch.tanh(layer.net(2, read_n + r * (back_n + layer.bias_recurrent)))
    return (new + z * (state[0] - new),)


def _matrix(linear: nn.Module) -> Tensor:
    """(outputs, inputs) that a linear map multiplies with, also where a norm computes it from what it stores."""
    return linear.plain() if hasattr(linear, "plain") else linear.weight  # type: ignore[operator, return-value]


def refill_recurrent(model: LanguageModel, init: Initializer, seed: int) -> None:
    """Draw the matrices from state to state anew: gate by gate, each parameter from the stream that is its own."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("recurrent.weight"):
                random = torch.Generator().manual_seed(derived(seed, "init", name))
                for part in torch.split(weight, weight.shape[1]):
                    init.fill(part, Place(name, weight.shape[1], weight.shape[1]), random)
        for module in model.modules():
            if isinstance(module, Settling):
                module.settle()


class RecurrentModel(LanguageModel):
    """The network that the recurrent families build; `family` is resolved."""

    compiles: ClassVar[bool] = False  # sequences have another length in each batch
    family: RecurrentFamily

    def __init__(self, family: RecurrentFamily, vocabulary: int) -> None:
        super().__init__(family, vocabulary)
        assert family.layers and family.width
        self.embedding = nn.Embedding(vocabulary, family.width)
        memory = getattr(family, "memory", None)
        self.layers = nn.ModuleList(
            Layer(family.cell, family.width, family.width, family.norm, memory) for _ in range(family.layers)
        )
        # States are small at first, and so are the rows of a tied head: without a norm between them both learn very slowly.
        self.norm = RMSNorm(family.width, EPSILON)
        self.output = None if family.tied else Linear(family.width, vocabulary)
        self.drop = 0.0
        self.set_dropout(family.dropout)

    @classmethod
    def fresh(cls, family: RecurrentFamily, vocabulary: int, seed: int) -> Self:
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
        sequences, kept = window_sequences(ids, segments, cache), []
        # Embeddings are drawn small for the head's sake; √width brings them to the order of 1 (Vaswani et al. 2017).
        x = self._dropped(self.embedding(sequences.take(ids)) * self.embedding.embedding_dim**0.5)
        for number, layer in enumerate(self.stack()):
            state = layer.empty(len(sequences.first))
            if isinstance(cache, StateCache):
                state = tuple(part.index_select(0, sequences.rows) for part in cache.states[number])
            x, state = layer(x, sequences.sizes, state)
            kept.append(state)
            x = self._dropped(x)
        if isinstance(cache, StateCache):
            cache.states = [replaced(old, new, sequences.rows) for old, new in zip(cache.states, kept, strict=True)]
        return sequences.put(self.norm(x))

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head_weight())

    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight

    def new_cache(self, rows: int, length: int) -> Cache:
        return StateCache([layer.empty(rows) for layer in self.stack()], length)

    def set_dropout(self, rate: float) -> None:
        self.drop = rate

    def splits(self, name: str) -> tuple[int, ...]:
        assert self.family.width
        return (self.family.width,) * GATES[self.family.cell] if name.endswith(("input.weight", "recurrent.weight")) else ()

    def stack(self) -> list[Layer]:
        """The layers, from the tokens up."""
        return cast(list[Layer], list(self.layers))

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.drop if self.training else 0.0)


def replaced(old: State, new: State, rows: Tensor) -> State:
    """The states of a batch, of which `rows` went on."""
    return tuple(before.index_copy(0, rows, after) for before, after in zip(old, new, strict=True))


def window_sequences(ids: Tensor, segments: Tensor | None, cache: Cache | None) -> Sequences:
    """The windows of a batch; with a cache, which is moved on, each row goes on as one."""
    if isinstance(cache, StateCache):
        cache.advance(ids.shape[1], segments)
        if segments is not None:
            segments = torch.where(segments >= 0, 0, -1)
    if segments is None:
        return Sequences.whole(ids.shape[0], ids.shape[1], ids.device)
    return Sequences.of(beginnings(segments), segments >= 0)
