"""The next batch made by a thread while the step computes, in memory that a GPU can read by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from chattune.tokens.batch import Batch
from chattune.train.loop import Batches


class Prefetched:
    """`order`, one batch ahead of its reader. Its state is the reader's, so that a resumed run misses no batch and sees none twice.

    `pin`: put batches into page-locked memory, from which copies to the GPU run beside its work.
    """

    def __init__(self, order: Batches, *, pin: bool) -> None:
        self._order, self._pin = order, pin
        self._state = order.state_dict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: Future[tuple[Batch, dict[str, int]]] | None = None

    def next(self) -> Batch:
        """The batch at the state; what the thread could not make is raised here."""
        batch, self._state = (self._ahead or self._pool.submit(self._made)).result()
        self._ahead = self._pool.submit(self._made)
        return batch

    def epoch_of_batches(self) -> Iterator[Batch]:
        self._settle()
        return self._order.epoch_of_batches()

    def state_dict(self) -> dict[str, int]:
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._settle()
        self._order.load_state_dict(state)
        self._state = self._order.state_dict()

    def _settle(self) -> None:
        """Take back what was made ahead: only then may the order be moved."""
        if self._ahead is not None:
            self._ahead.exception()  # waits; an error of a batch that nobody reads concerns nobody
            self._ahead = None
            self._order.load_state_dict(self._state)

    def _made(self) -> tuple[Batch, dict[str, int]]:
        batch = self._order.next()
        return batch.pinned() if self._pin else batch, self._order.state_dict()
