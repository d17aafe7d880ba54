"""A small GPT-2 and the loop that nanoGPT is known for, written anew from its published settings: what others start from.

Pre-norm blocks with LayerNorm, learned positions, GELU, fused queries, keys and values, tied head, no biases, float32 on a
processor; AdamW on matrices with decay 0.1, gradients clipped at 1, warm-up and cosine; batches cropped at random offsets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int
    dropout: float = 0.0


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads, self.drop = shape.heads, shape.dropout
        self.first, self.second = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.mixed = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows, time, width = x.shape
        q, k, v = (part.view(rows, time, self.heads, -1).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, dim=-1))
        drop = self.drop if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        x = x + self.dropout(self.mixed(seen.transpose(1, 2).reshape(rows, time, width)))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.second(x)))))


class NanoGPT(nn.Module):
    """ids (rows, time) → logits (rows, time, vocabulary)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.context, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                branch_end = name.endswith(("mixed.weight", "narrow.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * shape.layers) if branch_end else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.embedding(ids) + self.places.weight[: ids.shape[1]])
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


@dataclass(frozen=True)
class Recipe:
    """What the loop follows; the defaults are those of the processor's configuration for Tiny Shakespeare."""

    steps: int = 2000
    rows: int = 12
    peak: float = 1e-3
    lowest: float = 1e-4
    warmup: int = 100
    beta2: float = 0.99
    decay: float = 0.1
    clip: float = 1.0

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        share = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lowest + 0.5 * (1 + math.cos(math.pi * share)) * (self.peak - self.lowest)


def crops(ids: Tensor, rows: int, context: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, context) from random places of the one-dimensional `ids`."""
    starts = torch.randint(len(ids) - context, (rows,), generator=random)
    whole = ids[starts[:, None] + torch.arange(context + 1)]
    return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()


def train(
    model: NanoGPT, recipe: Recipe, batch: Callable[[], tuple[Tensor, Tensor]], stop: Callable[[int, float], bool] = lambda *_: False,
    times: list[float] | None = None,
) -> list[float]:
    """Seconds of each update, added to `times`; `stop` is asked after each with the number of updates and the seconds so far."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.peak, betas=(0.9, recipe.beta2),
    )  # fmt: skip
    model.train()
    times = [] if times is None else times
    for step in range(recipe.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        inputs, targets = batch()
        loss = F.cross_entropy(model(inputs).view(-1, model.embedding.num_embeddings), targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
        if stop(step + 1, sum(times)):
            break
    return times
