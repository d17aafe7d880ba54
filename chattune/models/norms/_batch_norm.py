"""The module of batch normalisation, and the passes that give it the statistics of a whole training split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.core.errors import SettingError
from chattune.models.fresh import Settling

if TYPE_CHECKING:
    from chattune.models.norms.batch_norm import BatchNorm


class Normalise(Settling):
    """(…, width) → (…, width). What comes in is all real tokens: padding was taken out before.

    In training mode the batch's own mean and (biased) variance, through which gradients flow; else the moving ones, which stand in
    buffers of float32 whatever the model computes in. The moving variance is unbiased, as in the paper.
    """

    moving_mean: Tensor
    moving_variance: Tensor

    def __init__(self, width: int, norm: BatchNorm) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("moving_mean", torch.zeros(width))
        self.register_buffer("moving_variance", torch.ones(width))
        self.collecting: Whole | None = None

    def settle(self) -> None:
        self.moving_mean.zero_()
        self.moving_variance.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if self.collecting is not None:
            self.collecting.add(flat)
        if self.training and len(flat) < 2:
            raise SettingError(
                "batch_norm cannot train on a micro-batch of one token: it has no variance.", path="model.norm", value="batch_norm",
                rule="at least 2 tokens in a micro-batch", hint="Raise train.batch_tokens, or set model.norm=layer_norm or rms_norm.",
            )
        wide = self.moving_mean.dtype
        mixed = F.batch_norm(
            flat, self.moving_mean, self.moving_variance, self.weight.to(wide), self.bias.to(wide), self.training, self.norm.momentum,
            self.norm.epsilon,
        )
        return mixed.view_as(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalise:
        """Moved and widened with the model, never narrowed: eight bits cannot hold an average that moves by hundredths."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("moving_mean", "moving_variance"):
            buffer = getattr(self, name)
            if buffer.dtype in (torch.bfloat16, torch.float16):
                setattr(self, name, buffer.float())
        return self


class Whole:
    """Mean and variance of each unit over everything added, in float64, merged so that no digits are lost (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0  # Σ (x − mean)²

    def add(self, flat: Tensor) -> None:
        """(tokens, units)."""
        new = flat.detach().double()
        if not len(new):
            return
        mean, count = new.mean(0), self.count + len(new)
        apart = mean - self.mean
        self.squares = self.squares + (new - mean).square().sum(0) + apart.square() * (self.count * len(new) / count)
        self.mean = self.mean + apart * (len(new) / count)
        self.count = count


@torch.no_grad()
def take_whole_statistics(model: nn.Module, passes: Callable[[], Iterable[None]]) -> None:
    """Give every batch norm of `model` that asks for it mean and variance of the whole training split.

    Each step of `passes()` runs the model, in evaluation mode, on the next batch. A pass is begun anew for each norm, since what enters
    one depends on the statistics of those before it. The norms are settled in the order in which the model holds them, which must be
    the order in which it uses them.
    """
    for norm in [module for module in model.modules() if isinstance(module, Normalise) and module.norm.statistics == "whole"]:
        norm.collecting = Whole()
        for _ in passes():
            pass
        seen, norm.collecting = norm.collecting, None
        if seen.count:
            norm.moving_mean.copy_(seen.mean)
            norm.moving_variance.copy_(seen.squares / seen.count)
