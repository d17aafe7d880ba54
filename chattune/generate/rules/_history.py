"""What a history holds, for the rules that look back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def counts(logits: Tensor, history: Tensor) -> Tensor:
    """(rows, vocabulary) in the type of `logits`: how often each token stands in the (rows, time) `history`, padding left out."""
    import torch

    vocabulary = logits.shape[-1]
    # Padding (-1) is sent to a column of its own, which is cut off again.
    found = logits.new_zeros((*logits.shape[:-1], vocabulary + 1))
    return found.scatter_add(-1, history.remainder(vocabulary + 1), torch.ones_like(history, dtype=logits.dtype))[..., :-1]
