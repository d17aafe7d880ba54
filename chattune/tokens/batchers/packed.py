"""Rows filled with several windows each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.tokens.batchers import Batcher, in_batches

if TYPE_CHECKING:
    import numpy as np


class Packed(Batcher):
    """Fill each row with several windows, so that almost no position is padding.

    The longest windows are placed first, in random order among equals, and each goes where it leaves the least room.

    Helps when: dialogs are shorter than the context. Hurts when: a model cannot keep the windows of a row apart (families here
    can: segments and positions start again at each). Cost: under a second for 100,000 windows. Start with: this.
    Source: best-fit decreasing, Johnson 1973; isolation as in Krell et al. 2021, arXiv:2107.02027.
    """

    def batches(self, lengths: np.ndarray, tokens: int, context: int, random: np.random.Generator) -> list[list[list[int]]]:
        import numpy as np

        rows: list[list[int]] = []
        with_room: list[list[int]] = [[] for _ in range(context + 1)]  # rows by the room that is left in them
        some = 0  # bit r is set when a row has room r: the tightest fit is the lowest set bit from `length` on
        order = np.lexsort((random.random(len(lengths)), -lengths))
        for window, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
            fitting = some >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                row = with_room[room].pop()
                if not with_room[room]:
                    some &= ~(1 << room)
            else:
                room, row = context, len(rows)
                rows.append([])
            rows[row].append(window)
            with_room[room - length].append(row)
            some |= 1 << (room - length)
        return in_batches(rows, tokens, context, random)

    def time(self, context: int) -> int | None:
        return context
