"""The processes that train together: one, or those that torchrun started. Gradients are summed; process 0 writes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process' `rank` among `size`; alone by default."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> World:
        """The group that torchrun's environment names (gloo on processors, NCCL on GPUs), or a world of one."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Every process ends with the sum over all; each loss was divided by the tokens of the whole batch."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # a process without rows still takes part
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        offset = 0
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes of a tensor."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def same(self, value: float) -> float:
        """Process 0's number, on every process."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared.item())
