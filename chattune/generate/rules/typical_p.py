"""Typical-p, or locally typical sampling: candidates about as surprising as the model expects."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor


class TypicalP(Rule):
    """Keep the tokens whose surprise −log p is nearest to its expectation, the entropy, until they hold the share p; 1: all.

    Helps when: replies are dull or repeat themselves: the likeliest token goes, too, where it would say too little.
    Hurts when: a question has one answer, and p is so small that the obvious one is left out.
    Cost: a sort with its order, the dearest of the rules that truncate.   Start with: 0.9.
    Source: Meister, Pimentel, Wiher & Cotterell 2023, arXiv:2202.00666. Equals are kept, as in transformers.
    """

    p: float = setting(1.0, "share of probability kept; 1: all", above=0.0, high=1.0, search=[0.2, 0.9, 0.95, 1.0])

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.p == 1.0:
            return logits
        log = logits.double().log_softmax(-1)  # float64: a running sum over a large vocabulary
        share = log.exp()
        entropy = -(share * log).nan_to_num(nan=0.0).sum(-1, keepdim=True)  # 0 · log 0 = 0
        distance = (log + entropy).abs()
        order = _ascending(distance)
        running = share.gather(-1, order).cumsum(-1)
        last = (running < self.p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)  # tokens before it do not suffice
        return logits.masked_fill(distance > distance.gather(-1, order.gather(-1, last)), -math.inf)


def _ascending(values: Tensor) -> Tensor:
    """The order in which `values` rise. NumPy's is the faster one on the processor."""
    if values.device.type != "cpu":
        return values.argsort(dim=-1)
    import numpy as np
    import torch

    return torch.from_numpy(np.argsort(values.numpy(), axis=-1))
