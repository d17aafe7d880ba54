"""Top-p, or nucleus sampling: as many candidates as hold a share of the probability."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor


class TopP(Rule):
    """Keep the smallest set of likeliest tokens whose probability is at least p (nucleus sampling), and their equals; 1: all.

    Helps when: the tail of unlikely tokens derails replies; the set grows and shrinks with the model's certainty.
    Hurts when: p is so small that replies become alike.   Cost: a sort.   Start with: 0.9.
    Source: Holtzman et al. 2020, arXiv:1904.09751. It truncates what is drawn from and changes no weight: no regularization.
    """

    p: float = setting(1.0, "share of probability kept; 1: all", above=0.0, high=1.0, search=[0.8, 0.9, 0.95, 1.0])

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.p == 1.0:
            return logits
        ordered = _descending(logits)
        share = ordered.double().softmax(-1)  # float64: a running sum over a large vocabulary
        count = (share.cumsum(-1) - share < self.p).sum(-1, keepdim=True)  # tokens before which the others do not suffice
        least = ordered.gather(-1, (count - 1).clamp(min=0))
        return logits.masked_fill(logits < least, -math.inf)


def _descending(logits: Tensor) -> Tensor:
    """Values in falling order. On the processor NumPy's sort, which carries no indices along, is 25 times as fast as torch's."""
    if logits.device.type != "cpu":
        return logits.sort(dim=-1, descending=True).values
    import numpy as np
    import torch

    return torch.from_numpy(np.sort(logits.numpy(), axis=-1)).flip(-1)
