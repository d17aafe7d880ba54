"""The settings of training. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chattune.core.part import Settings, choose, part_list, setting
from chattune.models.adapters import Adapter
from chattune.tokens.batchers import Batcher
from chattune.tokens.batchers.packed import Packed
from chattune.train.objectives import Objective
from chattune.train.objectives.next_token import NextToken
from chattune.train.optimizers import Optimizer
from chattune.train.optimizers.muon import Muon
from chattune.train.regularizers import Regularizer
from chattune.train.schedules import Schedule
from chattune.train.schedules.warmup_stable_decay import WarmupStableDecay
from chattune.train.stoppers import Stopper


class Trial(Settings):
    """A first, short training; the whole one begins only where it lowered the held-out loss by more than chance explains."""

    fraction: float = setting(
        0.1, "share of the training dialogs, and of the length, that the trial gets", above=0.0, below=1.0, search=(0.05, 0.3)
    )
    dialogs: int | None = setting(None, "validation dialogs that are compared, evenly spaced; none: all", low=2, high=1 << 30)


class Limits(Settings):
    """What a training may take; one that would take more, by a short measurement, is refused before it begins."""

    memory: float | None = setting(None, "memory of the process, in GiB", above=0.0, high=1e6)
    minutes: float | None = setting(None, "wall time of the loop", above=0.0, high=1e7)
    disk: float | None = setting(None, "checkpoints, weights and tokens, in GiB", above=0.0, high=1e6)
    reply_speed: float | None = setting(None, "tokens a second that a single reply must reach on this machine", above=0.0, high=1e9)

    @property
    def any(self) -> bool:
        return any(getattr(self, name) is not None for name in type(self).model_fields)


class TrainConfig(Settings):
    """How long, with what, and how carefully. At most one of `steps`, `minutes` and `epochs` is given."""

    steps: int | None = setting(None, "updates of the weights", low=1, high=100_000_000)
    minutes: float | None = setting(
        None, "wall time of the loop; the clock decides how far the schedule is, so repeat such a run with `steps`", above=0.0, high=1e6
    )
    epochs: float | None = setting(None, "passes over the training split; 1 when nothing else is given", above=0.0, high=1e6)
    batch_tokens: int | None = setting(None, "input positions of one update, over all micro-batches and processes", low=2, high=1 << 30)
    accumulate: int = setting(1, "micro-batches that one update is computed in; changes memory, not the result", low=1, high=1 << 16)
    objective: Objective = NextToken()
    optimizer: Optimizer = Muon()
    schedule: Schedule = WarmupStableDecay()
    regularizers: tuple[Regularizer, ...] = ()
    stopper: Stopper | None = None
    adapter: Adapter | None = setting(None, "few new weights that learn instead of the model's own; needs a model to start from")
    freeze: tuple[str, ...] = setting((), "parameters that do not learn, by name or pattern (embedding, blocks.0, *norm)")
    trial: Trial | None = setting(None, "first train on a share of the dialogs, and go on only where that helped")
    batcher: Batcher = Packed()
    context: int | None = setting(None, "tokens of the longest window to learn from; none: the model's context", low=8, high=1 << 20)
    truncation: Literal["split", "left", "right", "middle"] = setting("split", "what to do with dialogs longer than the context")
    clip: float = setting(1.0, "largest 2-norm of the whole gradient; 0: no clipping", low=0.0, high=1e6, search=(0.25, 4.0))
    precision: Literal["auto", "float32", "bfloat16", "int8"] = setting(
        "auto", "numbers of forward and backward; auto: the faster of float32 and bfloat16, measured; int8: rounded linear maps"
    )
    compile: Literal["auto", "on", "off"] = setting("auto", "torch.compile; auto: where a long run would win by it, measured")
    checkpoint_activations: bool = setting(False, "compute each block again in the backward pass: a third more work for less memory")
    threads: int | None = setting(None, "processor threads; none: one a core", low=1, high=1024)
    processes: int = setting(1, "processes that train together, each with a share of the rows; torchrun's wins", low=1, high=1024)
    parallel: Literal["ddp", "fsdp"] = setting("ddp", "on several processes: the whole model on each (ddp), or weights divided (fsdp)")
    evaluations: int = setting(10, "looks at the validation split over the run, the last one at its end", low=1, high=10_000)
    evaluate_dialogs: int | None = setting(100, "validation dialogs of one look, evenly spaced; none: all", low=1, high=1 << 30)
    probe_dialogs: int = setting(50, "training dialogs scored beside them, without dropout or smoothing; 0: none", low=0, high=1 << 30)
    keep: Literal["best", "last"] = setting("best", "which weights to keep: those of the lowest validation loss, or the last ones")
    save_seconds: float = setting(60.0, "time between checkpoints", low=0.0, high=1e6)
    save_steps: int | None = setting(None, "steps between checkpoints, instead of the time", low=1, high=1 << 30)
    keep_last: int = setting(2, "newest checkpoints kept while training", low=2, high=1000)
    on_save_error: Literal["stop", "warn"] = setting("stop", "when a checkpoint cannot be written: stop, or warn and go on")
    limits: Limits = setting(Limits(), "refuse before it begins what would take more than this")
    prompts: tuple[str, ...] = setting((), "answered before, half-way and after, to be looked at")

    @model_validator(mode="before")
    @classmethod
    def _adamw_for_an_adapter(cls, data: Any) -> Any:
        """The thin matrices of an adapter want AdamW, and some a rate of their own, unless told otherwise."""
        if not isinstance(data, Mapping) or data.get("adapter") is None:
            return data
        try:
            adapter = choose(Adapter, data["adapter"])
        except (PydanticCustomError, ValidationError):
            return data  # told by its own field
        optimizer = data.get("optimizer", {})
        optimizer = {"name": optimizer} if isinstance(optimizer, str) else optimizer
        if isinstance(optimizer, Mapping) and optimizer.get("name", "adamw") == "adamw":
            left_open = optimizer.get("lr") is None and adapter.rate is not None
            return {**data, "optimizer": {"name": "adamw", **optimizer, **({"lr": adapter.rate} if left_open else {})}}
        return data

    @field_validator("freeze", mode="before")
    @classmethod
    def _patterns(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("regularizers", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return part_list(value)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in ("steps", "minutes", "epochs") if getattr(self, name) is not None]
        if len(given) > 1:
            raise PydanticCustomError("length", "{given} contradict one another: give one of them", {"given": " and ".join(given)})
        return self
