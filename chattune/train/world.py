"""The processes that train together: one, or those that a launcher started. How they talk: numbers that all of them need alike.

Decisions (to save, to stop, how far the clock is) travel through the processors' memory, never through a GPU's queue.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous as meet

from chattune.core import processes
from chattune.core.errors import RankError

PATIENCE = timedelta(minutes=30)  # for a process that is alive and silent: it may be saving, or answering the recipe's prompts
_LOST = ("gloo", "Connection", "Socket", "NCCL", "Broken pipe", "store")  # words of the errors that torch raises for a lost process


@dataclass(frozen=True)
class World:
    """This process' `rank` among `size`; alone by default."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, rendezvous: str | None = None) -> World:
        """The group that the launcher's environment names (gloo on processors, NCCL between GPUs), or a world of one.

        `rendezvous`: where the processes meet, as `torch.distributed` writes it; none: where the environment says.
        """
        if processes.count() == 1:
            return cls()
        if not dist.is_initialized():
            backend = "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
                backend = "cpu:gloo,cuda:nccl"
            with _reaching(processes.rank()):
                shared, rank, size = next(meet(rendezvous or "env://", processes.rank(), processes.count()))
                store = PrefixStore(_attempt(), shared)
                store.set_timeout(PATIENCE)
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes of a tensor, in place."""
        if self.size > 1:
            with _reaching(self.rank):
                dist.all_reduce(value)
        return value

    def same(self, *values: float) -> tuple[float, ...]:
        """The first process' numbers, on every process."""
        if self.size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        with _reaching(self.rank):
            dist.broadcast(shared, 0)
        return tuple(shared.tolist())

    def most(self, *values: float) -> tuple[float, ...]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        with _reaching(self.rank):
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        return tuple(shared.tolist())

    def totals(self, values: Sequence[float]) -> list[float]:
        """Each number summed over all processes, in float64."""
        return [float(value) for value in self.sum(torch.tensor(values, dtype=torch.float64))]


def _attempt() -> str:
    """A name for this start of the processes. torchrun keeps one store over its restarts, where the addresses of processes that are
    gone would be called again. Over several machines their counts may differ, and `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` helps."""
    one_machine = processes.beside() == processes.count()
    return f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}" if one_machine else "attempt"


@contextlib.contextmanager
def _reaching(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise lost(error, rank) or error from None


def lost(error: BaseException, rank: int) -> RankError | None:
    """What `error` says where it tells that another process cannot be reached, in our words; none for any other error."""
    text = str(error)
    if isinstance(error, RankError):
        return error
    if not isinstance(error, RuntimeError) or not any(word in text for word in _LOST):
        return None
    return RankError(
        f"process {rank} lost the others: {' '.join(text.split())[:160]}.", path="train", rule="every process stays until the end",
        hint="What was saved is intact: continue with `chattune resume`.",
    )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
