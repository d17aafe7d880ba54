"""The network of the GPT family. Queries, keys and values are one matrix, gate and up another; they part on export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.core.seeds import derived
from chattune.models import huggingface
from chattune.models.language_model import Cache, LanguageModel
from chattune.models.layers import (
    Linear,
    RMSNorm,
    attention,
    cache_bias,
    causal_bias,
    dropout,
    rms_norm,
    rotary,
    rotate,
    swiglu,
    window_bias,
)

if TYPE_CHECKING:
    from chattune.models.families.gpt import GPT


@dataclass(frozen=True)
class _Frame:
    """What all layers of one forward pass share: rotary tables, who may look at whom, and where the cache is written."""

    cos: Tensor
    sin: Tensor
    bias: Tensor | None
    causal: bool
    cache: Cache | None
    slots: Tensor | None


class _Attention(nn.Module):
    def __init__(self, family: GPT, layer: int) -> None:
        super().__init__()
        assert family.width and family.heads and family.kv_heads
        self.layer, self.heads, self.kv = layer, family.heads, family.kv_heads
        self.head = family.width // family.heads
        self.qkv = Linear(family.width, (self.heads + 2 * self.kv) * self.head)
        self.output = Linear(self.heads * self.head, family.width)
        self.query_norm = RMSNorm(self.head, family.norm_epsilon) if family.qk_norm else None
        self.key_norm = RMSNorm(self.head, family.norm_epsilon) if family.qk_norm else None
        self.drop = 0.0

    def forward(self, x: Tensor, frame: _Frame) -> Tensor:
        rows, time, _ = x.shape
        both, v = torch.split(self.qkv(x).view(rows, time, -1, self.head), [self.heads + self.kv, self.kv], dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            weight = torch.cat([self.query_norm.weight.expand(self.heads, -1), self.key_norm.weight.expand(self.kv, -1)])
            both = rms_norm(both, weight, self.query_norm.epsilon)
        both = rotate(both, frame.cos, frame.sin)
        q, k = torch.split(both.transpose(1, 2), [self.heads, self.kv], dim=1)  # (rows, heads, time, head)
        v = v.transpose(1, 2)
        if frame.cache is not None and frame.slots is not None:
            k, v = frame.cache.write(self.layer, frame.slots, k, v)
            q = q.to(k.dtype)
        mixed = attention(q, k, v, frame.bias, frame.causal, self.drop if self.training else 0.0)
        return self.output(mixed.transpose(1, 2).reshape(rows, time, -1).to(x.dtype))  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    def __init__(self, family: GPT) -> None:
        super().__init__()
        assert family.width and family.hidden
        self.gate_up = Linear(family.width, 2 * family.hidden)
        self.output = Linear(family.hidden, family.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(swiglu(self.gate_up(x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, family: GPT, layer: int) -> None:
        super().__init__()
        assert family.width
        self.attention_norm = RMSNorm(family.width, family.norm_epsilon)
        self.attention = _Attention(family, layer)
        self.feed_forward_norm = RMSNorm(family.width, family.norm_epsilon)
        self.feed_forward = _FeedForward(family)
        self.drop = 0.0

    def forward(self, x: Tensor, frame: _Frame) -> Tensor:
        drop = self.drop if self.training else 0.0
        x = x + dropout(self.attention(self.attention_norm(x), frame), drop)
        return x + dropout(self.feed_forward(self.feed_forward_norm(x)), drop)


class GPTModel(LanguageModel):
    """The decoder that `GPT.build` gives; `family` is resolved."""

    family: GPT

    def __init__(self, family: GPT, vocabulary: int) -> None:
        super().__init__(family, vocabulary)
        assert family.layers and family.width
        self.embedding = nn.Embedding(vocabulary, family.width)
        self.blocks = nn.ModuleList(_Block(family, layer) for layer in range(family.layers))
        self.norm = RMSNorm(family.width, family.norm_epsilon)
        self.output = None if family.tied else Linear(family.width, vocabulary)
        self.drop = 0.0
        self.set_dropout(family.dropout)

    @classmethod
    def fresh(cls, family: GPT, vocabulary: int, seed: int) -> Self:
        """A model with fresh weights, each drawn from a stream of its own, named by the seed and the parameter."""
        with torch.device("meta"):
            model = cls(family, vocabulary)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim < 2:
                    weight.fill_(1.0)
                elif std := model._fresh_std(name, weight):
                    weight.normal_(0.0, std, generator=torch.Generator().manual_seed(derived(seed, "init", name)))
                else:
                    weight.zero_()
        return model

    def _fresh_std(self, name: str, weight: Tensor) -> float:
        family = self.family
        assert family.layers
        if name in ("embedding.weight", "output.weight"):
            return family.init_std or 0.02
        std = family.init_std or weight.shape[1] ** -0.5
        if not name.endswith("output.weight") or family.init == "normal":
            return std
        return 0.0 if family.init == "zero" else std / (2 * family.layers) ** 0.5

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        frame = self._frame(ids, positions, segments, cache)
        x = dropout(self.embedding(ids), self.drop if self.training else 0.0)
        for block in self.blocks:
            x = block(x, frame)
        if cache is not None:
            cache.lengths += ids.shape[1] if segments is None else (segments >= 0).sum(1)
        return self.norm(x)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head_weight())

    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight

    def new_cache(self, rows: int, length: int) -> Cache:
        f = self.family
        assert f.layers and f.width and f.heads and f.kv_heads
        # On the processor attention over one query is several times faster in float32 than in bfloat16.
        dtype = torch.float32 if self.device.type == "cpu" and self.dtype == torch.bfloat16 else self.dtype
        return Cache(f.layers, rows, f.kv_heads, length, f.width // f.heads, dtype=dtype, device=self.device)

    def set_dropout(self, rate: float) -> None:
        for module in self.modules():
            if isinstance(module, (GPTModel, _Block, _Attention)):
                module.drop = rate

    def splits(self, name: str) -> tuple[int, ...]:
        f = self.family
        assert f.width and f.heads and f.kv_heads and f.hidden
        head = f.width // f.heads
        if name.endswith("qkv.weight"):
            return (f.heads * head, f.kv_heads * head, f.kv_heads * head)
        return (f.hidden, f.hidden) if name.endswith("gate_up.weight") else ()

    def _frame(self, ids: Tensor, positions: Tensor | None, segments: Tensor | None, cache: Cache | None) -> _Frame:
        f, dtype, time = self.family, self.dtype, ids.shape[1]
        assert f.width and f.heads
        slots = None if cache is None else cache.slots(time)
        if positions is None:
            positions = torch.arange(time, device=ids.device)[None] if slots is None else slots
        cos, sin = rotary(positions, f.width // f.heads, f.rope_theta, dtype)
        if cache is not None and slots is not None:
            bias, causal = cache_bias(slots, cache.keys[0].dtype), False
        elif segments is None or (not torch.compiler.is_compiling() and _one_window_a_row(segments)):
            bias, causal = causal_bias(time, dtype, ids.device), True
        else:
            bias, causal = window_bias(segments, dtype), False
        return _Frame(cos, sin, bias, causal, cache, slots)

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Names and configuration of Qwen3 in transformers, or of Llama where queries and keys are not normalised."""
        return huggingface.exported(self)

    def load_exported(self, tensors: dict[str, Tensor]) -> None:
        self.load_state_dict(huggingface.own(self, tensors), strict=True)


def _one_window_a_row(segments: Tensor) -> bool:
    """True where each row is one window and padding follows it: then the plain causal mask keeps padding out of sight."""
    return bool((segments <= 0).all()) and bool((segments[:, 1:] <= segments[:, :-1]).all())
