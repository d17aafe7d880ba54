"""The network of the GPT family. Queries, keys and values are one matrix, gate and up another; they part on export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.models import fresh, huggingface
from chattune.models.language_model import Cache, LanguageModel
from chattune.models.layers import (
    GATED,
    PLAIN,
    Linear,
    RMSNorm,
    attention,
    cache_bias,
    causal_bias,
    dropout,
    llama3_speeds,
    rms_norm,
    rotary_speeds,
    rotate,
    softcap,
    turns,
    window_bias,
)

if TYPE_CHECKING:
    from chattune.models.families.gpt import GPT


@dataclass(frozen=True)
class _Sight:
    """What layers of one kind share in a forward pass: rotary tables, who may look at whom, and the first slot looked at."""

    turn: tuple[Tensor, Tensor] | None
    bias: Tensor | None
    causal: bool
    first: int = 0


@dataclass(frozen=True)
class _Frame:
    """What all layers of one forward pass share: what those with and without a window see, and where the cache is written."""

    everything: _Sight
    local: _Sight
    cache: Cache | None
    slots: Tensor | None


class _Attention(nn.Module):
    def __init__(self, family: GPT, layer: int) -> None:
        super().__init__()
        assert family.width and family.head and family.heads and family.kv_heads
        self.layer, self.local = layer, family.local(layer)
        self.heads, self.kv, self.head = family.heads, family.kv_heads, family.head
        self.scale, self.cap = family.attention_scale, family.attention_softcap
        self.qkv = Linear(family.width, (self.heads + 2 * self.kv) * self.head, family.biases != "none")
        self.output = Linear(self.heads * self.head, family.width, family.biases in ("attention", "all"))
        self.query_norm = family.norm.build(self.head) if family.qk_norm else None
        self.key_norm = family.norm.build(self.head) if family.qk_norm else None
        self.prefix: nn.Module | None = None  # keys and values before all others, from an adapter
        self.drop = 0.0

    def forward(self, x: Tensor, frame: _Frame) -> Tensor:
        rows, time, _ = x.shape
        sight = frame.local if self.local else frame.everything
        both, v = self.qkv(x).view(rows, time, -1, self.head).split_with_sizes([self.heads + self.kv, self.kv], dim=2)
        both = self._normed(both)
        if sight.turn is not None:
            both = rotate(both, *sight.turn)
        q, k = both.transpose(1, 2).split_with_sizes([self.heads, self.kv], dim=1)  # (rows, heads, time, head)
        v = v.transpose(1, 2)
        if frame.cache is not None and frame.slots is not None:
            k, v = frame.cache.write(self.layer, frame.slots, k, v)
            q = q.to(k.dtype)
            if sight.first:
                k, v = k[:, :, sight.first :], v[:, :, sight.first :]
        bias = sight.bias
        if self.prefix is not None:
            k, v, bias = self.prefix(k, v, bias)
        mixed = attention(q, k, v, bias, sight.causal, self.drop if self.training else 0.0, self.scale, self.cap)
        return self.output(mixed.transpose(1, 2).reshape(rows, time, -1).to(x.dtype))  # type: ignore[no-any-return]

    def _normed(self, both: Tensor) -> Tensor:
        """(rows, time, heads + kv, head): queries and keys, each head normalised."""
        if self.query_norm is None or self.key_norm is None:
            return both
        if isinstance(self.query_norm, RMSNorm) and isinstance(self.key_norm, RMSNorm):  # one pass over the numbers instead of two
            weight = torch.cat([self.query_norm.scale().expand(self.heads, -1), self.key_norm.scale().expand(self.kv, -1)])
            return rms_norm(both, weight, self.query_norm.epsilon)
        q, k = torch.split(both, [self.heads, self.kv], dim=2)
        return torch.cat([self.query_norm(q), self.key_norm(k)], dim=2)


class _FeedForward(nn.Module):
    def __init__(self, family: GPT) -> None:
        super().__init__()
        assert family.width and family.hidden
        biased = family.biases == "all"
        if family.gated:
            self.gate_up, self.activation = Linear(family.width, 2 * family.hidden, biased), GATED[family.activation]
        else:
            self.up, self.activation = Linear(family.width, family.hidden, biased), PLAIN[family.activation]
        self.gated = family.gated
        self.output = Linear(family.hidden, family.width, biased)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.activation(self.gate_up(x) if self.gated else self.up(x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, family: GPT, layer: int) -> None:
        super().__init__()
        assert family.width
        self.residual, self.post, both = family.residual, family.norm_placement == "post", family.norm_placement == "both"
        self.attention_norm = family.norm.build(family.width)
        self.attention = _Attention(family, layer)
        self.attention_output_norm = family.norm.build(family.width) if both else None
        self.feed_forward_norm = family.norm.build(family.width)
        self.feed_forward = _FeedForward(family)
        self.feed_forward_output_norm = family.norm.build(family.width) if both else None
        self.drop = 0.0

    def forward(self, x: Tensor, frame: _Frame) -> Tensor:
        branch = self.attention(x if self.post else self.attention_norm(x), frame)
        x = self._joined(x, branch, self.attention_norm, self.attention_output_norm)
        branch = self.feed_forward(x if self.post else self.feed_forward_norm(x))
        return self._joined(x, branch, self.feed_forward_norm, self.feed_forward_output_norm)

    def _joined(self, x: Tensor, branch: Tensor, norm: nn.Module, output_norm: nn.Module | None) -> Tensor:
        branch = branch if output_norm is None else output_norm(branch)
        branch = dropout(branch, self.drop if self.training else 0.0)
        x = x + branch if self.residual else branch
        return norm(x) if self.post else x


class GPTModel(LanguageModel):
    """The decoder that `GPT.build` gives; `family` is resolved."""

    family: GPT

    def __init__(self, family: GPT, vocabulary: int) -> None:
        super().__init__(family, vocabulary)
        assert family.layers and family.width and family.context
        self.embedding = nn.Embedding(vocabulary, family.width)
        self.position_embedding = nn.Embedding(family.context, family.width) if family.positions == "learned" else None
        self.blocks = nn.ModuleList(_Block(family, layer) for layer in range(family.layers))
        self.norm = None if family.norm_placement == "post" else family.norm.build(family.width)
        self.output = None if family.tied else Linear(family.width, vocabulary)
        self.drop = 0.0
        self.set_dropout(family.dropout)

    @classmethod
    def empty(cls, family: GPT, vocabulary: int, device: str = "cpu") -> Self:
        """A model whose weights are to be read: memory is taken, and nothing is drawn."""
        with fresh.unfilled():
            model = cls(family, vocabulary)
        if device != "meta":
            fresh.allocated(model, device)
        return model

    @classmethod
    def fresh(cls, family: GPT, vocabulary: int, seed: int) -> Self:
        """A model with fresh weights, each drawn from a stream of its own, named by the seed and the parameter."""
        assert family.layers
        model = cls.empty(family, vocabulary)
        fresh.fill(model, family.init, seed, outputs=family.init_outputs, branches=2 * family.layers)
        return model

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        slots = None if cache is None else cache.slots(ids.shape[1])
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None] if slots is None else slots
        frame = self._frame(positions, segments, cache, slots)
        x = dropout(self._embedded(ids, positions), self.drop if self.training else 0.0)
        for block in self.blocks:
            x = block(x, frame)
        if cache is not None:
            cache.lengths += ids.shape[1] if segments is None else (segments >= 0).sum(1)
        return x if self.norm is None else self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, self.embedding.weight) if self.output is None else self.output(hidden)
        return logits if self.family.logit_softcap is None else softcap(logits, self.family.logit_softcap)

    def head_weight(self) -> Tensor | None:
        return self._table() if self.family.logit_softcap is None else None

    def _table(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight

    def _embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.family.embedding_scale != 1.0:
            # As a number of the model's own dtype, as transformers has it.
            x = x * torch.tensor(self.family.embedding_scale, dtype=x.dtype, device=x.device)
        return x if self.position_embedding is None else x + self.position_embedding(positions)  # type: ignore[no-any-return]

    def new_cache(self, rows: int, length: int) -> Cache:
        f = self.family
        assert f.layers and f.head and f.kv_heads
        # On the processor attention over one query is several times faster in float32 than in bfloat16.
        dtype = torch.float32 if self.device.type == "cpu" and self.dtype == torch.bfloat16 else self.dtype
        return Cache(f.layers, rows, f.kv_heads, length, f.head, dtype=dtype, device=self.device)

    def set_dropout(self, rate: float) -> None:
        for module in self.modules():
            if isinstance(module, (GPTModel, _Block, _Attention)):
                module.drop = rate

    def splits(self, name: str) -> tuple[int, ...]:
        f = self.family
        assert f.head and f.heads and f.kv_heads and f.hidden
        if name.endswith(("qkv.weight", "qkv.bias")):
            return (f.heads * f.head, f.kv_heads * f.head, f.kv_heads * f.head)
        return (f.hidden, f.hidden) if name.endswith(("gate_up.weight", "gate_up.bias")) else ()

    def public_names(self, name: str) -> tuple[str, ...]:
        return tuple(piece.name for piece in huggingface.pieces(self, name))

    def _frame(self, positions: Tensor, segments: Tensor | None, cache: Cache | None, slots: Tensor | None) -> _Frame:
        f = self.family
        assert f.head and f.layers
        turn = local_turn = None
        if f.positions == "rotary":
            speeds = rotary_speeds(f.head, f.rope_theta, positions.device)
            if (scaling := f.rope_scaling) is not None and scaling.type == "llama3":
                speeds = llama3_speeds(speeds, scaling.factor, scaling.low, scaling.high, scaling.context)
            elif scaling is not None:
                speeds = speeds / scaling.factor
            turn = local_turn = turns(positions, speeds, self.dtype)
            if f.local_rope_theta is not None:
                local_turn = turns(positions, rotary_speeds(f.head, f.local_rope_theta, positions.device), self.dtype)
        local = self._sight(local_turn, positions, segments, cache, slots, f.window)
        if f.window is None or not f.global_layers:
            return _Frame(local, local, cache, slots)
        return _Frame(self._sight(turn, positions, segments, cache, slots, None), local, cache, slots)

    def _sight(
        self, turn: tuple[Tensor, Tensor] | None, positions: Tensor, segments: Tensor | None, cache: Cache | None, slots: Tensor | None,
        window: int | None,
    ) -> _Sight:
        """What a layer with that window sees; one that no place of this pass reaches beyond is none."""
        time = positions.shape[1]
        if cache is not None and slots is not None:
            # Local layers look at no slot before the first row's window: decoding then costs the same however long the past is.
            first = 0 if window is None else max(0, int(slots.min()) - window + 1)
            return _Sight(turn, cache_bias(slots, cache.keys[0].dtype, window, first), False, first)
        window = None if window is not None and window >= time else window
        # A GPU that is asked must be waited for.
        asked = segments is not None and not segments.is_cuda and not torch.compiler.is_compiling()
        if segments is None or (asked and _one_window_a_row(segments)):
            return _Sight(turn, causal_bias(time, self.dtype, positions.device, window), window is None)
        return _Sight(turn, window_bias(segments, self.dtype, window), False)

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Names and configuration of the architecture in transformers that computes the same, if there is one."""
        return huggingface.exported(self)

    def load_exported(self, tensors: Mapping[str, Tensor]) -> None:
        huggingface.take(self, tensors)


def _one_window_a_row(segments: Tensor) -> bool:
    """True where each row is one window and padding follows it: then the plain causal mask keeps padding out of sight."""
    return bool((segments <= 0).all()) and bool((segments[:, 1:] <= segments[:, :-1]).all())
