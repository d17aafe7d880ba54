"""The loop: one for every objective that learns from a fixed set.

What it promises: the gradient is that of the mean over all target tokens of the global batch, however it is divided into
micro-batches and processes; a non-finite loss or gradient never reaches the weights; the state after step n, and so every
number after it, does not depend on whether the run was interrupted.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from chattune.core.errors import DivergenceError
from chattune.core.files import size
from chattune.core.progress import Progress, duration
from chattune.core.record import Record
from chattune.core.seeds import derived
from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.train.budget import Budget
from chattune.train.config import TrainConfig
from chattune.train.device import Worker, peak_memory
from chattune.train.division import Alone
from chattune.train.interrupt import Interrupt
from chattune.train.regularizers import Regularizer
from chattune.train.state import Snapshot, Snapshots
from chattune.train.world import World

PATIENCE_WITH_NAN = 3  # updates in a row that may be left out before the run is given up


@dataclass
class State:
    """What changes from step to step, beside weights and optimizer."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    skipped: int = 0  # non-finite updates in a row
    evaluations: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    saved: int = -1  # step of the newest checkpoint
    choice: dict[str, Any] = field(default_factory=dict)  # precision and compilation, so that a resumed run computes as it began


class Batches(Protocol):
    """Global batches in a seeded order that can be continued anywhere: `tokens.order.Order`."""

    def next(self) -> Batch: ...

    def epoch_of_batches(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...


class _NonFinite(Exception):
    pass


@dataclass(frozen=True)
class Update:
    """One update of the weights: the run's tokens after it, and the numbers to record."""

    step: int
    tokens: int
    numbers: dict[str, float]


@dataclass(frozen=True)
class _Done:
    """An update whose numbers may still be on their way: `values` holds loss and gradient norm once `arrived` has happened."""

    step: int
    tokens: int
    lr: float
    where: dict[str, int]
    values: Tensor
    arrived: torch.cuda.Event | None


class Training:
    """Everything that one run computes with; `fit` runs it from its state to the end."""

    def __init__(
        self, config: TrainConfig, worker: Worker | Alone, order: Batches, budget: Budget, seed: int, *, device: str = "cpu"
    ) -> None:
        """`worker`: what computes; or how it stands on several processes (`train/division.py`)."""
        self.config, self.order, self.budget, self.seed, self.device = config, order, budget, seed, device
        self.division = Alone(worker) if isinstance(worker, Worker) else worker
        self.worker, self.world = self.division.worker, self.division.world
        worker = self.worker
        self.state = State()
        self.parameters = list(worker.master.trainable().values())
        self.optimizer = config.optimizer.build(worker.master.groups())
        self.memories = {method.name: method.begin(worker.master) for method in config.regularizers}
        self.best_weights: dict[str, Tensor] = {}
        # A GPU that would be asked after each step whether its numbers are finite would wait for the next one to be prepared. So it
        # leaves a bad step out by itself, where the optimizer can, and its numbers are read while the next step computes.
        self.ahead = device != "cpu" and not self.division.lockstep and getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self._done: deque[_Done] = deque()
        self.penalised = [method for method in config.regularizers if type(method).penalty is not Regularizer.penalty]

    def step(self) -> dict[str, float]:
        """One update and its numbers, waited for. Raises `DivergenceError` after three non-finite ones in a row."""
        self.advance()
        return [*self.arrived(wait=True)][-1].numbers

    def arrived(self, *, wait: bool = False) -> Iterator[Update]:
        """The updates since the last call, in order: those whose numbers are known, or with `wait` all of them."""
        while len(self._done) > (1 if self.ahead and not wait else 0):
            yield self._judged(self._done.popleft())

    def _judged(self, done: _Done) -> Update:
        if done.arrived is not None:
            done.arrived.synchronize()
        loss, norm = done.values.tolist()
        finite = math.isfinite(loss + norm)
        self.state.skipped = 0 if finite else self.state.skipped + 1
        if self.state.skipped >= PATIENCE_WITH_NAN:
            raise DivergenceError(
                f"loss or gradient was not finite in {self.state.skipped} updates in a row, the last at step {done.step} "
                f"(epoch {done.where['epoch']}, batch {done.where['index']}).",
                path="train", value=loss, rule="a finite loss and gradient",
                hint="Lower train.optimizer.lr or set train.clip; the weights saved before are finite.",
            )
        numbers = {"loss": loss, "grad_norm": norm, "lr": done.lr, **({} if finite else {"left_out": 1.0})}
        return Update(done.step, done.tokens, numbers)

    def advance(self) -> None:
        """One update; its numbers come by `arrived`."""
        config, state, model = self.config, self.state, self.worker.model
        factor = self.budget.factor(config.schedule, state.step, state.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        where = self.order.state_dict()
        batch = self.order.next()
        labelled = float(batch.weights.sum())  # normalise by target tokens over the whole global batch
        seen = torch.empty(2, dtype=torch.float64)  # loss and gradient norm; the last look of an optimizer that looks twice

        def gradients() -> Tensor:  # an optimizer such as SAM or L-BFGS calls it again, and sees the same masks
            self.optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(derived(self.seed, "step", state.step, self.world.rank))
            random = torch.Generator().manual_seed(derived(self.seed, "augment", state.step, self.world.rank))
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            parts = [self._augmented(part, random) for part in self.division.parts(batch, config.accumulate)]
            weights = [float(part.weights.sum()) for part in parts]  # 0: all of its targets stand in other shares
            if spare := self.division.spare(batch):
                parts = [part if weight else spare for part, weight in zip(parts, weights, strict=True)]
            else:
                parts, weights = [p for p, weight in zip(parts, weights, strict=True) if weight], [w for w in weights if w]
            for number, (part, weight) in enumerate(zip(parts, weights, strict=True), start=1):
                view = config.objective.view(model, part.to(self.device), full=bool(self.penalised))
                loss = view.loss + sum(method.penalty(view) for method in self.penalised)
                if number == len(parts):
                    self.division.last_backward()
                (loss * (weight / labelled)).backward()  # type: ignore[no-untyped-call]
                self.worker.collect_gradients()
                total += view.loss.detach().double() * (weight / labelled)
            self.division.reduce()
            loss = self.world.sum(total)
            for method in config.regularizers:
                method.gradients(self.worker.master, state.step)
            norm = self.division.norm(self.parameters)
            nonlocal seen
            seen = torch.stack((loss, norm.double()))
            held = [p.grad for p in self.parameters if p.grad is not None]
            if self.ahead:
                self.optimizer.found_inf = (~seen.isfinite().all()).float()  # type: ignore[attr-defined]
                if config.clip:
                    torch._foreach_mul_(held, (config.clip / norm).clamp(max=1.0))
                return loss
            known, size = seen.tolist()
            if not math.isfinite(known + size):
                raise _NonFinite
            if config.clip and size > config.clip:
                torch._foreach_mul_(held, config.clip / size)
            return loss

        try:
            self.optimizer.step(gradients)  # type: ignore[arg-type]
        except _NonFinite:  # raised before the optimizer touched a weight
            self.optimizer.zero_grad(set_to_none=True)
        else:
            for method in config.regularizers:
                method.weights(self.worker.master, state.step, self.memories[method.name])
            self.division.after_step()
        state.step += 1
        state.tokens += int((batch.segments >= 0).sum())
        arrived = None
        if self.ahead and seen.is_cuda:
            seen, arrived = seen.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        lr = self.optimizer.param_groups[0]["lr"]
        self._done.append(_Done(state.step, state.tokens, lr, where, seen, arrived))

    def require_finite_weights(self) -> None:
        """Refuse to save or judge weights that overflowed."""
        if not self.division.finite():
            raise DivergenceError(
                f"a weight is not finite after step {self.state.step}.", path="train", rule="finite weights",
                hint="Lower train.optimizer.lr; the checkpoints saved before are finite.",
            )

    def chosen(self) -> dict[str, Tensor]:
        """The weights that learn, as they are to be judged and kept: by the last regularizer that has a choice, else the master's."""
        weights = self.worker.master.changing()
        for method in self.config.regularizers:
            weights |= method.chosen(self.worker.master, self.memories[method.name]) or {}
        return {name: weight.detach() for name, weight in weights.items()}

    @contextlib.contextmanager
    def wearing(self, weights: dict[str, Tensor]) -> Iterator[LanguageModel]:
        """The model with these weights for the time of the block, in the precision that it trains in and without dropout."""
        model = self.worker.model
        self.division.rest()
        own = {name: value.detach().clone() for name, value in model.changing().items()}
        training = model.training
        # Compiled for the shapes of training; other shapes would compile again.
        faster = None if self.division.lockstep else model.__dict__.pop("hidden", None)
        with torch.no_grad():
            for name, value in model.changing().items():
                value.copy_(weights[name])
        try:
            yield model.eval()
        finally:
            model.train(training)
            self.division.rest()
            if faster is not None:
                model.__dict__["hidden"] = faster
            with torch.no_grad():
                for name, value in model.changing().items():
                    value.copy_(own[name])

    def save(self, snapshots: Snapshots) -> None:
        """A checkpoint from which `restore` continues to the bit, on any number of processes; the first one writes it."""
        assert not self._done, "the numbers of an update are not known yet"
        self.require_finite_weights()
        whole = self.division.whole
        memories = {f"method-{name}": whole(memory.state_dict()) for name, memory in self.memories.items() if memory is not None}
        weights, optimizer = whole(self.worker.master.changing()), self.division.whole_state(self.optimizer.state_dict())
        if not self.world.first:
            return
        if self.best_weights:
            memories["best"] = self.best_weights
        state = {**asdict(self.state), "saved": self.state.step, "order": self.order.state_dict()}
        if snapshots.save(self.state.step, weights, optimizer, state, memories):
            self.state.saved = self.state.step

    def restore(self, snapshot: Snapshot) -> None:
        """Continue as if never interrupted."""
        spread = self.division.spread
        with torch.no_grad():
            changing = self.worker.master.changing()
            for name, value in spread({name: snapshot.model[name] for name in changing}, changing).items():
                changing[name].copy_(value)
        self.worker.follow()
        replace(snapshot, optimizer=self.division.spread_state(self.optimizer, snapshot.optimizer)).restore_optimizer(self.optimizer)
        state = dict(snapshot.state)
        self.order.load_state_dict(state.pop("order"))
        self.state = State(**state)
        for name, memory in self.memories.items():
            if memory is not None:
                memory.load_state_dict(spread(snapshot.memories[f"method-{name}"], memory.state_dict()))
        if self.world.first:
            self.best_weights = snapshot.memories.get("best", {})

    @contextlib.contextmanager
    def shown(self) -> Iterator[LanguageModel | None]:
        """The model to talk to, with the weights of the moment that are to be judged: on the first process, else none."""
        weights = self.chosen()
        if not self.division.lockstep:
            if not self.world.first:
                yield None
                return
            with self.wearing(weights) as model:
                yield model
            return
        whole = self.division.whole(weights)
        twin = self.division.whole_model()
        if twin is not None:
            _fill(twin, whole)
            twin.eval()
        yield twin

    def kept(self) -> LanguageModel | None:
        """The master with the weights to keep, in one piece: on the first process, else none. The training is over then."""
        weights = {} if self._best_kept() else self.division.whole(self.chosen())
        model = self.division.whole_model()
        if model is not None and self.world.first:
            _fill(model, weights or self.best_weights)
            return model
        return None

    def keep_best(self, loss: float, weights: dict[str, Tensor]) -> None:
        """These are the best weights so far."""
        self.state.best = {"step": self.state.step, "loss": loss}
        whole = self.division.whole(weights)
        if self.world.first:
            self.best_weights = {name: weight.clone().cpu() for name, weight in whole.items()}

    def _best_kept(self) -> bool:
        return self.config.keep == "best" and self.state.best is not None

    def _augmented(self, batch: Batch, random: torch.Generator) -> Batch:
        for method in self.config.regularizers:
            batch = method.augment(batch, random)
        return batch


@torch.no_grad()
def _fill(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    for name, value in model.changing().items():
        value.copy_(weights[name])


@dataclass(frozen=True)
class Surroundings:
    """What `fit` reports to: where it records and saves, who may interrupt it, what it asks at each look."""

    record: Record
    snapshots: Snapshots
    interrupt: Interrupt
    bar: Progress
    run: str
    look: Callable[[LanguageModel], dict[str, Any]]  # numbers about the model, with at least "loss"
    half_way: Callable[[], None]


def fit(training: Training, around: Surroundings) -> str:
    """Run to the end of the budget or until the stopper has a reason; says which. Raises `Interrupted` once state is saved."""
    config, state, budget = training.config, training.state, training.budget
    since_save, resumed_at, clock = time.monotonic(), state.seconds, time.monotonic()
    if not state.history:
        _look(training, around)
    while True:
        progress = budget.progress(state.step, state.seconds)
        if progress >= 1.0:
            return "the planned end was reached"
        training.advance()
        state.seconds = resumed_at + time.monotonic() - clock
        if budget.seconds is not None:
            (state.seconds,) = training.world.same(state.seconds)  # the clock decides how far the run is: one clock for all
        done = budget.progress(state.step, state.seconds)
        around.bar.total = budget.total(state.step, state.seconds)
        looking = int(done * config.evaluations) > int(progress * config.evaluations)
        _tell(training, around, wait=looking or done >= 1.0)
        if looking:
            reason = _look(training, around)
            if reason:
                around.bar.note(f"stopped early: {reason}")
                return reason
        if progress < 0.5 <= done:
            around.half_way()
        due = state.step % config.save_steps == 0 if config.save_steps else time.monotonic() - since_save >= config.save_seconds
        stop, save = _agreed(training.world, around.interrupt, due)
        if stop or save:
            _tell(training, around, wait=True)
            training.save(around.snapshots)
            since_save = time.monotonic()
        if stop:
            training.world.same()  # nobody leaves before the first process has saved
            raise around.interrupt.stopped(state.step, around.run, saved=state.saved == state.step)


def _tell(training: Training, around: Surroundings, *, wait: bool) -> None:
    """Record the updates whose numbers are known; with `wait`, all."""
    try:
        for update in training.arrived(wait=wait):
            numbers, state = update.numbers, training.state
            around.record.append(step=update.step, **numbers, tokens=update.tokens, seconds=round(state.seconds, 3))
            around.bar.update(
                update.step, loss=f"{numbers['loss']:.3f}", rate=f"{numbers['lr']:.2g}", tokens=f"{_speed(training):,.0f}/s",
                memory=size(peak_memory()), saved=state.saved if state.saved >= 0 else None,
            )
    except DivergenceError as error:
        around.record.append(event="given up", step=training.state.step, error=str(error))
        raise


def _agreed(world: World, interrupt: Interrupt, due: bool) -> tuple[bool, bool]:
    """Whether to stop, since a signal reached any process, and whether the first one finds it time to save; the same on all."""
    if world.size == 1:
        return interrupt.requested, due
    signal, save = world.most(float(interrupt.signal or 0), float(due and world.first))
    if signal:
        interrupt.hear(int(signal))
    return bool(signal), bool(save)


def _speed(training: Training) -> float:
    """Input tokens a second since the beginning."""
    return training.state.tokens / max(training.state.seconds, 1e-9)


def _look(training: Training, around: Surroundings) -> str | None:
    """Judge the chosen weights, remember the best ones, and ask the stopper."""
    state, config = training.state, training.config
    training.require_finite_weights()
    weights = training.chosen()
    with training.wearing(weights) as model:
        numbers = around.look(model)
    entry = {"step": state.step, **numbers}
    state.history.append(entry)
    around.record.append(event="evaluation", seconds=round(state.seconds, 3), tokens=state.tokens, **entry)
    around.bar.note(
        f"step {state.step}  validation {numbers['loss']:.4f}"
        + (f"  train {numbers['train_loss']:.4f}" if "train_loss" in numbers else "")
        + (f"  bits/byte {numbers['bits_per_byte']:.3f}" if "bits_per_byte" in numbers else "")
        + f"  {duration(state.seconds)}"
    )
    better = state.best is None or numbers["loss"] < state.best["loss"]
    if config.keep == "best" and better and math.isfinite(numbers["loss"]):
        training.keep_best(numbers["loss"], weights)
    return config.stopper.stop(state.history) if config.stopper and state.step else None
