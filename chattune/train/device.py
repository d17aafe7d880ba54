"""What computes, and in which numbers: float32, or bfloat16 beside float32 masters; chosen by a short measurement and said.

int8 is never chosen by itself: its products are rounded more coarsely, and its loss was tried on little so far (RESULTS.md).

On some processors bfloat16 doubles the speed of a step, on others it halves it; nothing but a measurement on this machine
tells. The choice is kept with the training state, so that a resumed run computes as it began.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chattune.core.errors import SettingError
from chattune.models.int8 import int8_is_exact, uncompiled
from chattune.models.language_model import LanguageModel
from chattune.models.layers import Linear
from chattune.models.products import bfloat16_gain, int8_gain
from chattune.train.budget import Budget

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
MARGIN = 1.15  # bfloat16 must win by more than the noise of a shared machine, so that equal runs choose equally
HOPELESS = 0.5  # of float32's speed in products alone: then no pass in bfloat16 is tried
COMPILE_SECONDS = 45.0  # what compiling costs before the first step, roughly; measured 25 to 60 on two cores


@dataclass(frozen=True)
class Choice:
    """How the steps are computed."""

    device: str
    precision: Precision
    compile: bool

    def __str__(self) -> str:
        return f"{self.device}, {self.precision}{', compiled' if self.compile else ''}"


class Worker:
    """The model that runs forward and backward: the master itself, in int8 with its linear maps told so, or its bfloat16 copy.

    Gradients always arrive in float32 on the masters, micro-batch by micro-batch, so that a sum over many of them loses nothing.
    Frozen weights have no master of their own: both hold the same rounded ones.
    """

    def __init__(self, master: LanguageModel, precision: Precision) -> None:
        self.master = master
        self.model = _computing(master if precision != "bfloat16" else copy.deepcopy(master), precision)
        for rounded, kept in zip(self.model.parameters(), master.parameters(), strict=True):
            if rounded is not kept and not kept.requires_grad:
                # What never changes is there once; who needs it unrounded reads it again from where it came.
                kept.data = rounded.data
        own = self.model.trainable().values()
        self.pairs = list(zip(own, master.trainable().values(), strict=True))  # what backward fills, and where its gradient belongs
        for name, value in master.moving().items():  # what moves without gradients is one for both, in float32
            owner, _, key = name.rpartition(".")
            self.model.get_submodule(owner).register_buffer(key, value)

    def collect(self, own: nn.Parameter, master: nn.Parameter) -> None:
        """Add the gradient that a backward pass left on `own` to its master's."""
        if own is master or own.grad is None:
            return
        gradient, own.grad = own.grad.float(), None
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    def collect_gradients(self) -> None:
        """After each backward pass: all of them."""
        for own, master in self.pairs:
            self.collect(own, master)

    @torch.no_grad()
    def follow(self) -> None:
        """After each step: the copy takes the masters' weights, rounded."""
        if self.model is not self.master:
            torch._foreach_copy_([own for own, _ in self.pairs], [master for _, master in self.pairs])


def pick_device() -> str:
    """``cuda`` (the local rank's) where there is one, else ``cpu``."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def deterministic(where: str) -> None:
    """Only kernels that give equal bits every time, on a processor: the promise is for these, and CUDA lacks some of them.

    New memory is not filled with NaN beforehand, as PyTorch does then (5 % of an update of a small model): nothing reads it unwritten.
    """
    torch.use_deterministic_algorithms(where == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_precision(master: LanguageModel, step: Callable[[LanguageModel], None], wanted: str) -> tuple[Precision, str]:
    """`wanted`, or for ``auto`` the faster of float32 and bfloat16 for forward and backward of one real micro-batch.

    `step` runs forward and backward on the model given. Gives the choice and the sentence that explains it. `SettingError` where
    int8 is wanted and cannot be had.
    """
    if wanted == "int8":
        return "int8", f"int8 as set, in {_int8_used(master, step)} linear maps{_int8_remark()}"
    if wanted in ("float32", "bfloat16"):
        return wanted, f"{wanted} as set"  # type: ignore[return-value]
    if master.device.type == "cuda":
        good = torch.cuda.is_bf16_supported()
        return ("bfloat16", "bfloat16: this GPU computes in it") if good else ("float32", "float32: this GPU has no bfloat16")
    if bfloat16_gain() < HOPELESS:  # a pass would take as many times longer, and tell nothing more
        return "float32", f"float32: products in bfloat16 take {1 / bfloat16_gain():.0f} times as long here"
    half = _computing(copy.deepcopy(master), "bfloat16")
    wide = copy.deepcopy(master)
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for attempt in range(4):  # in turn, so that a slow moment of the machine hits both; the first round warms up
        for name, model in (("float32", wide), ("bfloat16", half)):
            began = time.perf_counter()
            step(model)
            if attempt:
                times[name].append(time.perf_counter() - began)
    slow, fast = min(times["float32"]), min(times["bfloat16"])
    chosen: Precision = "bfloat16" if slow > MARGIN * fast else "float32"
    return chosen, f"{chosen}: a pass takes {slow * 1000:.0f} ms in float32, {fast * 1000:.0f} ms in bfloat16"


def _computing(model: LanguageModel, precision: Precision) -> LanguageModel:
    """`model`, changed in place to compute in `precision`."""
    if precision == "int8":
        for linear in _int8_maps(model):
            linear.int8 = True
    return model.to(torch.bfloat16) if precision == "bfloat16" else model


def _int8_maps(model: LanguageModel) -> list[Linear]:
    """Every linear map but the output head."""
    tables = model.token_tables()
    return [module for name, module in model.named_modules() if isinstance(module, Linear) and f"{name}.weight" not in tables]


def _int8_used(master: LanguageModel, step: Callable[[LanguageModel], None]) -> int:
    """How many linear maps compute in int8 in one pass; `SettingError` where none does or the products are not right."""
    why, used = "", set[int]()
    if master.device.type != "cpu":
        why = "is for processors: a GPU computes in bfloat16"
    elif not int8_is_exact():
        why = f"gives wrong sums on this processor{f' ({reason})' if (reason := uncompiled()) else ''}"
    else:
        model = _computing(copy.deepcopy(master), "int8").train()
        for linear in _int8_maps(model):
            linear.register_forward_hook(lambda module, *_: used.add(id(module)))
        step(model)
        why = "" if used else f"has nothing to do in the {master.family.name} family, whose products are not those of linear maps"
    if why:
        rule = "auto, float32 or bfloat16"
        raise SettingError(f"int8 {why}.", path="train.precision", value="int8", rule=rule, hint="Set train.precision=auto.")
    return len(used)


def _int8_remark() -> str:
    """What is to be said where products in int8 cost time instead of saving it."""
    gain, why = int8_gain(), uncompiled()
    if gain >= 1:
        return ""
    times = f"{1 / gain:.0f}" if gain < 0.5 else f"{1 / gain:.1f}"
    return f", though its products take {times} times as long as float32's here{f': {why}' if why else ''}"


def choose_compile(
    master: LanguageModel, step: Callable[[LanguageModel], None], precision: Precision, budget: Budget, passes: int
) -> tuple[bool, str]:
    """Whether `torch.compile` pays: where the run is long against the time compiling takes, both are measured.

    `passes`: forward-backward passes of one update. Gives the choice and the clause that explains it.
    """
    cuda = master.device.type == "cuda"
    able = importlib.util.find_spec("triton") is not None if cuda else shutil.which("g++") is not None
    shortest = (4 if cuda else 20) * COMPILE_SECONDS
    if not able or not master.compiles or (budget.seconds is not None and budget.seconds < shortest):
        return False, ""
    model = _computing(copy.deepcopy(master), precision)
    plain = _seconds(step, model) * passes
    planned = budget.seconds or plain * (budget.steps or 1)
    if planned < shortest:
        return False, ""
    began = time.perf_counter()
    model.hidden = compiled(model)  # type: ignore[method-assign]
    try:
        fast = _seconds(step, model) * passes
    except Exception as error:  # the compiler's own failures are of every kind; eager always works
        return False, f"; compiling failed ({type(error).__name__})"
    cost = time.perf_counter() - began
    pays = planned * (1 - fast / plain) > 2 * cost
    return pays, f"; compiled {fast / plain:.2f} of the time, for {cost:.0f} s of compiling"


def compiled(model: LanguageModel) -> Callable[..., Tensor]:
    """`model.hidden`, compiled for the shapes that it meets; what the compiler only remarks on is not shown."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chattune" / "compiled"
    # Kept between runs, and in the user's own folder: compiled code that came with somebody's runs is never loaded.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    faster: Callable[..., Tensor] = torch.compile(model.hidden, dynamic=False)
    return faster


def _seconds(step: Callable[[LanguageModel], None], model: LanguageModel) -> float:
    times = []
    for _ in range(4):
        began = time.perf_counter()
        step(model)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes (on CUDA: the allocator's peak)."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:  # Linux: of this program alone; what getrusage tells begins with the size of the program that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that compute one after the other and are only ever called: the entries of the model's `blocks`, if it has them."""
    found = getattr(model, "blocks", None)
    return [*found] if isinstance(found, nn.ModuleList) else []


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the inputs of each block for the backward pass, which computes the rest again, with the same dropout.

    `SettingError` where the model has no blocks. Source: Chen et al. 2016, arXiv:1604.06174.
    """
    found = blocks(model)
    if not found:
        raise SettingError(
            f"{type(model).__name__} has no blocks to compute again.", path="train.checkpoint_activations", value=True,
            rule="a model made of blocks", hint="Set it to false, and train.accumulate higher for less memory.",
        )
    for block in found:
        block.forward = _computed_again(block.forward)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return again


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all of them together, as a scalar tensor."""
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return total
