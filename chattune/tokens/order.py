"""`Order`: which windows come when, as a function of the seed, the epoch and the index; and `collate`: windows to a `Batch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
import torch

from chattune.core import seeds
from chattune.core.errors import DataError, ResumeError
from chattune.tokens.batch import Batch
from chattune.tokens.batchers import Batcher
from chattune.tokens.token_set import TokenSplit
from chattune.tokens.windows import Windows, read


class Order:
    """An endless, seeded sequence of global batches. Batch `index` of `epoch` depends on nothing but the seed and the data.

    `tokens`: input positions of a global batch; `context`: positions of a full row. The state is the number of the next batch:
    ``{"epoch", "index"}``. `batches_per_epoch` is that of epoch 0; another epoch may pack into one or two more or fewer.
    """

    def __init__(self, split: TokenSplit, windows: Windows, batcher: Batcher, tokens: int, context: int, seed: int) -> None:
        if len(windows) == 0:
            raise DataError(
                "no dialog has anything to learn from.", rule="at least one target token with a weight above zero",
                hint="Set prepare.targets=all, or bring conversations with replies.",
            )
        self.split, self.windows, self.batcher = split, windows, batcher
        self.tokens, self.context, self.seed = tokens, context, seed
        self.epoch = self.index = 0
        self._plan = self._planned(0)
        self.batches_per_epoch = len(self._plan)

    def next(self) -> Batch:
        """The next global batch; after the last of an epoch the next epoch begins, in another order."""
        rows = self._plan[self.index]
        self.index += 1
        if self.index == len(self._plan):
            self._go_to(self.epoch + 1, 0)
        return collate(self.split, self.windows, rows, self.split.control["pad"], self.batcher.time(self.context))

    def epoch_of_batches(self) -> Iterator[Batch]:
        """The batches of epoch 0, whatever this order has given so far, which stays untouched: every window once."""
        for rows in self._planned(0):
            yield collate(self.split, self.windows, rows, self.split.control["pad"], self.batcher.time(self.context))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue as if this order had been read up to `state`."""
        self._go_to(int(state["epoch"]), int(state["index"]))
        if not 0 <= self.index < len(self._plan):
            raise ResumeError(
                f"batch {self.index} of epoch {self.epoch} does not exist.", value=self.index, rule=f"below {len(self._plan)}",
                hint="The data or the batch size is not the one that the state was saved with.",
            )

    def _go_to(self, epoch: int, index: int) -> None:
        if epoch != self.epoch:
            self._plan = self._planned(epoch)
        self.epoch, self.index = epoch, index

    def _planned(self, epoch: int) -> list[list[list[int]]]:
        random = seeds.generator(self.seed, "order", epoch)
        return self.batcher.batches(self.windows.length, self.tokens, self.context, random)


def collate(split: TokenSplit, windows: Windows, rows: list[list[int]], pad: int, time: int | None = None) -> Batch:
    """Windows, given by number for each row, as a batch of `time` positions a row (none: as many as the longest row needs)."""
    chosen = np.fromiter(chain.from_iterable(rows), np.int64)
    windows_of_row = np.fromiter(map(len, rows), np.int64, len(rows))
    row_of_window = np.repeat(np.arange(len(rows)), windows_of_row)
    length = windows.length[chosen]
    filled = np.bincount(row_of_window, weights=length, minlength=len(rows)).astype(np.int64)
    width = int(filled.max(initial=1)) if time is None else time
    assert filled.max(initial=0) <= width, "a row is longer than its batch"

    where, weight, place = read(split, windows, chosen)
    ids = split.ids[where].astype(np.int64)
    number = np.repeat(np.arange(len(chosen)), length + 1)  # which of the chosen windows an id belongs to
    is_input = place < np.repeat(length, length + 1)
    # An input's place in its row: after the inputs of the windows before it.
    before = np.cumsum(length) - length - np.repeat(np.cumsum(filled) - filled, windows_of_row)
    at = (row_of_window * width + before)[number[is_input]] + place[is_input]
    segment = np.arange(len(chosen)) - np.repeat(np.cumsum(windows_of_row) - windows_of_row, windows_of_row)

    def laid_out(values: np.ndarray, empty: int, kind: type[np.generic]) -> torch.Tensor:
        flat = np.full(len(rows) * width, empty, kind)
        flat[at] = values
        return torch.from_numpy(flat.reshape(len(rows), width))

    is_target = place > 0
    return Batch(
        inputs=laid_out(ids[is_input], pad, np.int64),
        targets=laid_out(ids[is_target], pad, np.int64),
        weights=laid_out(weight[is_target], 0, np.float32),
        positions=laid_out(place[is_input], 0, np.int64),
        segments=laid_out(segment[number[is_input]], -1, np.int32),
    )
