"""No-repeat n-gram: a run of tokens comes once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor


class NoRepeatNgram(Rule):
    """Leave out every token that would repeat a run of `size` tokens of the history, prompt included; 0 bans nothing.

    Helps when: a small model falls into loops, above all in greedy and beam search.
    Hurts when: repeating is right: names, code, a quotation of the question; and below 3, where it bans single words and even the
    end of the turn.   Cost: one comparison with the whole history.   Start with: 4.
    Source: Paulus, Xiong & Socher 2017, arXiv:1705.04304. A row keeps its tokens where nothing else would be possible.
    """

    size: int = setting(0, "tokens in a run that comes only once; 0: runs may repeat", low=0, high=1024, search=[0, 3, 4])

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.size == 0 or history.shape[-1] < self.size:
            return logits
        import torch

        runs = history.unfold(-1, self.size, 1)  # (rows, runs, size)
        length = (history >= 0).sum(-1, keepdim=True)  # padding stands on the right
        newest = (length - torch.arange(self.size - 1, 0, -1, device=history.device)).clamp(min=0)
        begun = (runs[..., :-1] == history.gather(-1, newest)[:, None]).all(-1) & (runs >= 0).all(-1)
        # Runs that began otherwise are sent to a column of their own, which is cut off again.
        ends = runs[..., -1].where(begun, logits.shape[-1])
        banned = torch.zeros((len(logits), logits.shape[-1] + 1), dtype=torch.bool, device=logits.device).scatter(-1, ends, True)
        left = logits.masked_fill(banned[:, :-1], -math.inf)
        return left.where((left > -math.inf).any(-1, keepdim=True), logits)
