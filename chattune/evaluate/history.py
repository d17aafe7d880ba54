"""How much history helps: the loss of the same tokens when less and less of what came before is seen, and where more stops paying.

Too short a context loses what a reply refers to, too long a one is paid for in memory and time; the curve says where this model
stands on these conversations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chattune.evaluate import bootstrap
from chattune.evaluate.loss import SplitLoss, split_loss

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.token_set import TokenSplit

SHORTEST = 8  # tokens; below that a window is hardly more than a word
TOLERANCE = 0.01  # of the loss: what is closer than this to the whole context's is as good


def lengths(context: int) -> list[int]:
    """The lengths that are tried, halved again and again from `context` down to a 32nd of it, the shortest first."""
    return [context >> halvings for halvings in range(5, 0, -1) if context >> halvings >= SHORTEST] + [context]


def history_curve(
    model: LanguageModel, split: TokenSplit, byte_lengths: np.ndarray, *, context: int, dialogs: int, seed: int
) -> dict[str, Any]:
    """Bits per byte of at most `dialogs` conversations, evenly spaced, at each of `lengths`: the same tokens each time.

    A window of length n reads n tokens and scores those that see at least n/2 of them (at the beginning of a dialog, all there is).
    Gives ``points`` (``context``, ``value``, ``low``, ``high``, and ``more``: the paired difference to the whole context) and ``knee``:
    the shortest length whose difference is certainly (95 %, over conversations) less than `TOLERANCE` of the loss.
    """
    losses = {
        length: split_loss(model, split, byte_lengths, context=length, overlap=length // 2, limit=dialogs)
        for length in lengths(context)
    }
    points = [_point(length, loss, losses[context], seed) for length, loss in losses.items()]
    return {"points": points, "knee": knee(points), "conversations": len(losses[context].nll), "tolerance": TOLERANCE}


def knee(points: Sequence[Mapping[str, Any]]) -> int:
    """The shortest context from which on no longer one gains more than `TOLERANCE`; `points` in order of their lengths."""
    allowed = TOLERANCE * points[-1]["value"]
    found: int = points[-1]["context"]
    for point in reversed(points):
        if point["more"]["high"] > allowed:
            break
        found = point["context"]
    return found


def sentence(curve: Mapping[str, Any]) -> str:
    """What the curve says, in words."""
    shortest, whole = curve["points"][0], curve["points"][-1]
    if curve["knee"] == whole["context"]:
        before = curve["points"][-2] if len(curve["points"]) > 1 else whole
        return (
            f"History still helps at the model's whole context of {whole['context']} tokens: {before['context']} cost"
            f" {before['more']['value']:+.3f} bits per byte. A larger model.context may pay."
        )
    return (
        f"{curve['knee']} tokens of history are as good as {whole['context']} (within {TOLERANCE:.0%}); {shortest['context']} cost"
        f" {shortest['more']['value']:+.3f} bits per byte."
    )


def _point(length: int, loss: SplitLoss, whole: SplitLoss, seed: int) -> dict[str, Any]:
    value, low, high = loss.intervals(seed)["bits_per_byte"]
    sums = np.stack(((loss.nll - whole.nll) / math.log(2), whole.bytes), axis=1)
    more = dict(zip(("value", "low", "high"), bootstrap.interval(sums, bootstrap.ratio, seed), strict=True))
    return {"context": length, "value": value, "low": low, "high": high, "more": more}
