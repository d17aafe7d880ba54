"""Windows: the pieces of dialogs that fit the context, and what is lost by cutting. Arrays only; no torch.

A window of `length` inputs reads ``length + 1`` ids: each but the last is an input, each but the first a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from chattune.core.errors import SettingError, did_you_mean
from chattune.tokens.token_set import TokenSplit

STRATEGIES = ("split", "left", "right", "middle")


@dataclass(frozen=True)
class Windows:
    """Arrays of equal length, int64. Window w belongs to ``dialog[w]`` and reads ``ids[start : start + length + 1]``.

    Where a middle was cut out (`gap` > 0) it reads `head` ids, jumps over `gap` of them and reads the rest, ``length + 1`` in
    all; the first target after the jump has weight 0, since its context was taken away. Its first `skip` targets are context
    only, with weight 0: another window bears them. `dropped` counts, by name: ``tokens`` that no window reads, ``targets`` with
    weight that no window bears, and ``windows_without_targets`` that were left out because they could teach nothing.
    """

    dialog: np.ndarray
    start: np.ndarray
    length: np.ndarray
    skip: np.ndarray
    head: np.ndarray
    gap: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.dialog)


@dataclass(frozen=True)
class _Piece:
    """One window within a dialog; `start` counts from the dialog's first id."""

    start: int
    length: int
    skip: int = 0
    head: int = 0
    gap: int = 0


def windows(split: TokenSplit, context: int, strategy: str = "split", overlap: int = 0) -> Windows:
    """Cut the dialogs of `split` to at most `context` inputs each; a dialog that fits is one window whatever the strategy.

    ``split``: several windows; every target with weight is borne exactly once; a cut falls after an ``<|end|>`` where one lies in
    the last third of the window; the last `overlap` targets before a cut are the context of the next window. ``right``: the first
    of these windows only. ``left``: the dialog's first id (``<|begin|>``) and the newest turns that fit. ``middle``: the oldest
    turns that fit half of the window and the newest that fit the rest. A turn that is too long for these is cut in its middle, from
    the left.
    """
    if strategy not in STRATEGIES:
        raise SettingError(
            f"'{strategy}' is no way to cut a dialog.", value=strategy, rule=f"one of {', '.join(STRATEGIES)}",
            hint=did_you_mean(strategy, STRATEGIES),
        )
    if context < 2:
        raise SettingError(f"a context of {context} holds no dialog.", value=context, rule="at least 2 tokens")
    if not 0 <= overlap < context:
        raise SettingError(
            f"an overlap of {overlap} does not fit a context of {context}.", value=overlap, rule=f"0 to {context - 1}",
            hint="Half the context is a good overlap.",
        )
    offsets = np.asarray(split.offsets)
    targets = np.diff(offsets) - 1  # ids of a dialog that something precedes
    short = np.flatnonzero((targets > 0) & (targets <= context))
    nothing = np.zeros(len(short), np.int64)
    columns = [np.stack([short, offsets[short], targets[short], nothing, nothing, nothing])]
    cut: Callable[[np.ndarray, np.ndarray], list[_Piece]] = {
        "split": lambda ids, ends: _split(len(ids), ends, context, overlap),
        "right": lambda ids, ends: _split(len(ids), ends, context, overlap)[:1],
        "left": lambda ids, ends: [_keep_both_ends(len(ids), ends, context, oldest=1)],
        "middle": lambda ids, ends: [_keep_both_ends(len(ids), ends, context, oldest=max(1, context // 2))],
    }[strategy]
    lost = 0
    for dialog in np.flatnonzero(targets > context):
        first, last = offsets[dialog], offsets[dialog + 1]
        ids = np.asarray(split.ids[first:last])
        pieces = cut(ids, _turn_ends(split, ids, split.weights[first:last]))
        columns.append(np.array([(dialog, first + p.start, p.length, p.skip, p.head, p.gap) for p in pieces], np.int64).T)
        lost += len(ids) - (pieces[-1].start + pieces[-1].length + 1 + pieces[-1].gap)
    dialog, start, length, skip, head, gap = np.concatenate(columns, axis=1)
    order = np.lexsort((start, dialog))
    found = Windows(dialog[order], start[order], length[order], skip[order], head[order], gap[order])
    return _without_empty(split, found, context, lost)


def read(split: TokenSplit, found: Windows, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows numbered `chosen`, one after another, ``length + 1`` entries each.

    Gives where each id stands in the split, its weight as a target (float32) and its place in the window. The first id of a window
    is no target: its weight is 0, like that of targets which are context only or lost their context.
    """
    length, skip, head, gap = (values[chosen] for values in (found.length, found.skip, found.head, found.gap))
    count = length + 1
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    jumped = (place >= np.repeat(head, count)) & (np.repeat(gap, count) > 0)
    where = np.repeat(found.start[chosen], count) + place + np.where(jumped, np.repeat(gap, count), 0)
    idle = (place <= np.repeat(skip, count)) | (jumped & (place == np.repeat(head, count)))
    return where, np.where(idle, np.float32(0), split.weights[where].astype(np.float32)), place


def _turn_ends(split: TokenSplit, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Where turns end. A template from elsewhere may use its end of turn for other things; after a turn comes a header, unweighted."""
    ends: np.ndarray = np.flatnonzero(ids == split.control["end"])
    followed: np.ndarray = np.asarray(weights)[np.minimum(ends + 1, len(ids) - 1)] > 0
    kept: np.ndarray = ends[~followed | (ends == len(ids) - 1)]
    return kept


def _split(count: int, ends: np.ndarray, context: int, overlap: int) -> list[_Piece]:
    """Windows over `count` ids that bear each weighted target once; `ends`: where an ``<|end|>`` stands."""
    pieces = []
    borne = 0  # targets up to this place have their window
    while borne < count - 1:
        start = max(0, borne - overlap)
        last = min(start + context, count - 1)
        before = int(np.searchsorted(ends, last, side="right")) - 1
        end = int(ends[before]) if before >= 0 else -1
        if last < count - 1 and end > max(borne, start + 2 * context // 3):
            last = end
        pieces.append(_Piece(start, last - start, skip=borne - start))
        # After an <|end|> comes a header, which carries no weight: the next window begins with it.
        borne = last + (last == end and last < count - 1)
    return pieces


def _keep_both_ends(count: int, ends: np.ndarray, context: int, oldest: int) -> _Piece:
    """One window: whole turns from the beginning, of at most `oldest` ids, and whole turns up to the end of the dialog."""
    turns = ends + 1  # where a turn begins, or the dialog ends
    fitting = turns[turns <= oldest]
    head = int(fitting[-1]) if len(fitting) else 1  # <|begin|> alone
    room = context + 1 - head
    newest = turns[(turns >= count - room) & (turns < count)]
    tail = count - int(newest[0]) if len(newest) else room
    return _Piece(0, head + tail - 1, head=head, gap=count - head - tail)


def _without_empty(split: TokenSplit, found: Windows, context: int, lost: int) -> Windows:
    """Leave out windows without any weighted target, and count what is dropped; `lost`: ids after the last window of a dialog."""
    borne = np.zeros(len(found), np.int64)
    some = max(1, (1 << 22) // (context + 1))  # windows at a time: bounds the memory
    for first in range(0, len(found), some):
        chosen = np.arange(first, min(first + some, len(found)))
        weights = read(split, found, chosen)[1]
        count = found.length[chosen] + 1
        borne[chosen] = np.add.reduceat((weights > 0).astype(np.int64), np.cumsum(count) - count)
    kept = np.flatnonzero(borne)
    dropped = {
        "tokens": lost + int(found.gap.sum()),
        "targets": int(np.count_nonzero(split.weights)) - int(borne.sum()),
        "windows_without_targets": len(found) - len(kept),
    }
    return Windows(
        found.dialog[kept], found.start[kept], found.length[kept], found.skip[kept], found.head[kept], found.gap[kept], dropped
    )
