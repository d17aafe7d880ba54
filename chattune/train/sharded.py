"""Weights, gradients and optimizer state divided over the processes: FSDP2 (`fully_shard`) behind the loop's one interface.

Each block of the model is gathered when it computes and let go after. Every process makes the same number of passes, since each
pass gathers; a process without rows repeats a row with weight 0. Snapshots hold whole tensors, so that another number of processes
can continue.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from chattune.core.errors import ResumeError
from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.train.device import Precision, Worker, blocks, norm_of
from chattune.train.division import Alone
from chattune.train.world import World


class Sharded(Alone):
    """`master` divided in place: its parameters become DTensors, cut along their first dimension.

    `precision` is what blocks compute in; weights, gradients and their sums are float32.
    Source: Zhao et al. 2023, arXiv:2304.11277, in the form of `torch.distributed.fsdp.fully_shard`.
    """

    lockstep = True

    def __init__(self, master: LanguageModel, world: World, precision: Precision) -> None:
        # Nothing changes hidden states in place: objectives pick rows out of them.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
        self._twin, self._buffers = _hollow(master)
        mesh = init_device_mesh(master.device.type, (world.size,))  # explicit: else a machine with GPUs moves the model there
        half = torch.bfloat16 if precision == "bfloat16" else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
        for block in blocks(master):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(master, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(master, "hidden")
        for module in master.modules():
            if isinstance(module, FSDPModule):
                # The losses are shares of the whole batch already: their gradients are summed, not averaged. Gloo knows sums only.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        super().__init__(Worker(master, "float32"), world)

    def parts(self, batch: Batch, accumulate: int) -> list[Batch]:
        own, rows, size = super().parts(batch, accumulate), len(batch), self.world.size
        passes = max(min(accumulate, (part + 1) * rows // size - part * rows // size) for part in range(size))
        empty = Batch(**{**vars(batch), "weights": torch.zeros_like(batch.weights)}).shares(rows)[0]
        return own + [empty] * (passes - len(own))

    def spare(self, batch: Batch) -> Batch:
        """The row with most targets."""
        return batch.shares(len(batch))[int(batch.weights.sum(1).argmax())]

    def norm(self, parameters: list[nn.Parameter]) -> Tensor:
        square = norm_of([_local(p.grad) for p in parameters if p.grad is not None]).double().square()
        return self.world.sum(square).sqrt().float()

    def finite(self) -> bool:
        own = all(bool(torch.isfinite(_local(p)).all()) for p in self.worker.master.parameters())
        return not self.world.most(float(not own))[0]

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        gathered = {}
        for name, tensor in tensors.items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            gathered[name] = full.detach().cpu() if self.world.first else torch.empty(0)  # one tensor at a time in whole
        return gathered

    def spread(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: _like(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()}

    def whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        def gathered(values: Mapping[str, Any]) -> dict[str, Any]:
            return {**values, **self.whole({key: value for key, value in values.items() if isinstance(value, Tensor)})}

        return {**state, "state": {number: gathered(values) for number, values in state["state"].items()}}

    def spread_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        if len(numbers) != len(parameters):
            return state  # told by the optimizer itself when it loads
        spread: dict[Any, dict[str, Any]] = {}
        for number, parameter in zip(numbers, parameters, strict=True):
            values = state["state"].get(number)
            if values is None:
                continue
            spread[number] = {key: _state_like(key, value, parameter) for key, value in values.items()}
        return {**state, "state": spread}

    def rest(self) -> None:
        for module in self.worker.master.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole_model(self) -> LanguageModel | None:
        weights = self.whole(dict(self.worker.master.named_parameters()))
        if not self.world.first:
            return None
        twin = copy.deepcopy(self._twin).to_empty(device="cpu")
        with torch.no_grad():
            for name, buffer in twin.named_buffers():
                buffer.copy_(self._buffers[name])
            for name, parameter in twin.named_parameters():
                parameter.copy_(weights[name])
        return twin


def whole(tensor: Tensor) -> Tensor:
    """`tensor` in one piece; itself where it is not divided. Every process calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(tensor: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return tensor
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)  # every process holds the same bytes


def _state_like(key: str, value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0 or not isinstance(parameter, DTensor):
        return value
    if value.shape != parameter.shape:
        raise ResumeError(
            f"the optimizer's '{key}' has a shape of its own, which cannot be divided like its weight.", path="train.parallel",
            value="fsdp", rule="state of the weight's shape", hint="Continue with train.parallel=ddp.",
        )
    return _like(value, parameter)


def _hollow(model: LanguageModel) -> tuple[LanguageModel, dict[str, Tensor]]:
    """A twin of `model` without numbers, to be filled again, and its buffers."""
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()}
    return copy.deepcopy(model).to("meta"), buffers
