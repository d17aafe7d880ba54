"""What `test_distributed.py` asks of two processes, all in one launch: ``python two_processes.py OUT`` as the launcher starts it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from chattune.core.part import kind
from chattune.models.families import Family
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.tokens.order import Order
from chattune.tokens.token_set import TokenSplit
from chattune.tokens.windows import windows
from chattune.train.budget import Budget
from chattune.train.config import TrainConfig
from chattune.train.device import Worker
from chattune.train.division import Alone, Replicated
from chattune.train.loop import Training
from chattune.train.objectives import LossView
from chattune.train.objectives.next_token import NextToken
from chattune.train.state import Snapshots
from chattune.train.world import World

CONTROL = {"begin": 0, "end": 1, "system": 2, "user": 3, "assistant": 4, "tool": 5, "pad": 6}
VOCABULARY, CONTEXT = 61, 32
FAMILY = GPT(layers=2, width=32, heads=4, kv_heads=2, hidden=48, context=CONTEXT, init_outputs="scaled")
WAYS = ("ddp", "fsdp")
STEPS = 6
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9}, "clip": 0.0},
    "adamw": {"optimizer": {"name": "adamw", "lr": 5e-3}, "clip": 0.5, "accumulate": 3, "regularizers": ["ema", {"name": "l2"}]},
    "muon": {"optimizer": "muon", "clip": 0.5, "regularizers": ["ema"]},
    "lora": {"optimizer": {"name": "adamw", "lr": 5e-3}, "adapter": {"name": "lora", "rank": 2}},
}


def made_split(dialogs: int = 70) -> TokenSplit:
    """Dialogs of ragged lengths with unequal weights."""
    random = np.random.default_rng(0)
    rendered = []
    for _ in range(dialogs):
        text = random.integers(7, VOCABULARY, int(random.integers(2, 60))).tolist()
        rendered.append(([0, 4, *text, 1], [0.0, 0.0, *random.choice([0.5, 1.0], len(text) + 1).tolist()]))
    return TokenSplit.of(rendered, CONTROL)


def made(config: dict[str, Any], way: str | None, world: World, *, family: Family = FAMILY, rows: int = 8) -> Training:
    """A training as one process has it (`way` is none), or as `world` divides it."""
    chosen = TrainConfig.model_validate({"steps": STEPS, "schedule": "constant", **config})
    master = family.build(VOCABULARY, 0)
    if chosen.adapter:
        chosen.adapter.attach(master, 0)
    for method in chosen.regularizers:
        method.edit(master)
    precision = "bfloat16" if chosen.precision == "bfloat16" else "float32"
    division: Alone | Worker = Worker(master, precision)
    if way == "ddp":
        division = Replicated(division, world)
    elif way == "fsdp":
        from chattune.train.sharded import Sharded

        division = Sharded(master, world, precision)
    split = made_split()
    order = Order(split, windows(split, CONTEXT), chosen.batcher, rows * CONTEXT, CONTEXT, 0)
    training = Training(chosen, division, order, Budget(steps=STEPS), 0)
    training.worker.model.train()
    return training


def gradients(config: dict[str, Any], way: str | None, world: World, **more: Any) -> dict[str, Tensor]:
    """The gradient of the first global batch, whole."""
    training = made({"optimizer": {"name": "sgd", "lr": 1e-3}, "clip": 0.0, **config}, way, world, **more)
    training.step()
    return training.division.whole({name: p.grad for name, p in training.worker.master.named_parameters() if p.grad is not None})


def curve(training: Training, steps: int) -> list[list[float]]:
    """Loss and gradient norm of each step."""
    return [[numbers["loss"], numbers["grad_norm"]] for numbers in (training.step() for _ in range(steps))]


def end(training: Training) -> dict[str, Tensor]:
    """Weights, and what the moving average chooses, whole."""
    weights = {f"weights.{name}": tensor for name, tensor in training.worker.master.named_parameters()}
    chosen = {f"chosen.{name}": tensor for name, tensor in training.chosen().items()}
    return {name: tensor.detach().clone() for name, tensor in training.division.whole({**weights, **chosen}).items()}


def small_families() -> Iterator[tuple[str, Family]]:
    """Every family that needs nothing from outside, as small as it goes."""
    for name in kind("families").names():
        family = kind("families").load(name)
        dials = {"layers": 2, "width": 16, "hidden": 24, "heads": 2, "kv_heads": 2, "context": CONTEXT, "depth": 2}
        known = {key: value for key, value in dials.items() if key in family.model_fields}
        try:
            yield name, family.model_validate(known).resolved()
        except ValueError:
            continue  # a family of foreign weights, which has a configuration of its own


class SpoiltOnTheSecond(NextToken):
    """A loss that is no number, on the second process alone, in its second step."""

    seen: list[int] = []  # each instance has a copy of its own

    def view(self, model: LanguageModel, batch: Batch, *, full: bool = False) -> LossView:
        view = super().view(model, batch, full=full)
        self.seen.append(1)
        if World.join().rank == 1 and len(self.seen) == 2:
            view.loss = view.loss * math.nan
        return view


def answer(out: Path, us: World) -> None:
    """Compute every case; the first process writes what came out."""
    numbers: dict[str, Any] = {}

    def keep(name: str, tensors: dict[str, Tensor]) -> None:
        if us.first:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / f"{name}.safetensors")

    for way in WAYS:
        for accumulate in (1, 3):
            keep(f"gradient-{way}-{accumulate}", gradients({"accumulate": accumulate, "batcher": "padded"}, way, us, rows=32))
        keep(f"few-rows-{way}", gradients({"accumulate": 4}, way, us, rows=3))
        keep(f"bfloat16-{way}", gradients({"precision": "bfloat16"}, way, us))
        for name, family in small_families():
            keep(f"family-{name}-{way}", gradients({}, way, us, family=family))
        for name, recipe in RECIPES.items():
            training = made(recipe, way, us)
            snapshots = Snapshots(out / f"{name}-{way}")
            first = curve(training, STEPS // 2)
            training.keep_best(1.0, training.chosen())
            training.save(snapshots)
            numbers[f"{name}-{way}"] = first + curve(training, STEPS - STEPS // 2)
            keep(f"end-{name}-{way}", end(training))
            us.same()
            resumed = made(recipe, way, us)
            resumed.restore(Snapshots(out / f"{name}-{way}").at(STEPS // 2))
            numbers[f"resumed-{name}-{way}"] = curve(resumed, STEPS - STEPS // 2)
            keep(f"resumed-{name}-{way}", end(resumed))
            elastic = made(recipe, way, us)
            elastic.restore(Snapshots(out / f"{name}-alone").at(STEPS // 2))  # written by one process before
            numbers[f"elastic-{name}-{way}"] = curve(elastic, STEPS - STEPS // 2)
            with elastic.shown() as model:
                assert (model is not None) == us.first
                numbers[f"shown-{name}-{way}"] = model is not None and bool(model(torch.tensor([[0, 4, 9]])).isfinite().all())
            with elastic.wearing(elastic.chosen()) as worn, torch.no_grad():
                logits = worn.head(worn.hidden(torch.tensor([[0, 4, 9]])))
            keep(f"worn-{name}-{way}", {"logits": logits.detach().clone()})
            kept = elastic.kept()
            assert (kept is not None) == us.first
            if kept is not None:
                keep(f"kept-{name}-{way}", dict(kept.named_parameters()))
        spoilt = made({"objective": SpoiltOnTheSecond(), "optimizer": {"name": "adamw", "lr": 1e-2}}, way, us)
        before = end(spoilt)
        spoilt.step()
        moved = end(spoilt)
        left_out = spoilt.step()
        after = end(spoilt)
        numbers[f"left-out-{way}"] = [
            left_out.get("left_out"), not us.first or any(not torch.equal(before[n], moved[n]) for n in moved),
            all(torch.equal(moved[n], after[n]) for n in moved), bool(np.isfinite(spoilt.step()["loss"])),
        ]  # fmt: skip
    numbers["agreed"] = [*us.most(float(us.rank), 5.0 - us.rank), *us.same(float(us.rank) + 7), *us.totals([1.0, us.rank])]
    if us.first:
        (out / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    answer(Path(sys.argv[1]), World.join(f"file://{sys.argv[1]}/rendezvous"))
