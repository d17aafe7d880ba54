"""A small real training for the campaigns, in this process or as one of two: ``python training.py RANK PORT OUT``."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chattune.core.progress import Progress
from chattune.core.record import Record
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel
from chattune.tokens.order import Order
from chattune.tokens.token_set import TokenSplit
from chattune.tokens.windows import windows
from chattune.train import loop
from chattune.train.budget import Budget
from chattune.train.config import TrainConfig
from chattune.train.device import Worker
from chattune.train.division import Replicated
from chattune.train.interrupt import Interrupt, listening
from chattune.train.state import Snapshots
from chattune.train.world import World

CONTROL = {"begin": 0, "end": 1, "system": 2, "user": 3, "assistant": 4, "tool": 5, "pad": 6}
VOCABULARY, CONTEXT, ROWS = 61, 32, 8
FAMILY = GPT(layers=2, width=32, heads=4, kv_heads=2, hidden=48, context=CONTEXT, init_outputs="scaled")


def made_split(seed: int = 0, dialogs: int = 70) -> TokenSplit:
    """Dialogs of ragged lengths."""
    random = np.random.default_rng(seed)
    rendered = []
    for _ in range(dialogs):
        text = random.integers(7, VOCABULARY, int(random.integers(2, 60))).tolist()
        rendered.append(([0, 4, *text, 1], [0.0, 0.0, *random.choice([0.5, 1.0], len(text) + 1).tolist()]))
    return TokenSplit.of(rendered, CONTROL)


def made_training(config: TrainConfig, seed: int = 0, *, rows: int = ROWS, world: World | None = None) -> loop.Training:
    master = FAMILY.build(VOCABULARY, seed)
    if config.adapter:
        config.adapter.attach(master, seed)
    for method in config.regularizers:
        method.edit(master)
    worker = Worker(master, "float32")
    worker.model.train()
    split = made_split(seed)
    order = Order(split, windows(split, CONTEXT), config.batcher, rows * CONTEXT, CONTEXT, seed)
    division = Replicated(worker, world) if world else worker
    return loop.Training(config, division, order, Budget(steps=config.steps), seed)


class SignallingRecord(Record):
    """Sends this process SIGTERM when a given step is recorded: an interruption at a known moment."""

    def __init__(self, path: Path, at: int | None) -> None:
        super().__init__(path)
        self.at = at

    def append(self, **fields: Any) -> None:
        super().append(**fields)
        if fields.get("step") == self.at and "event" not in fields:
            os.kill(os.getpid(), signal.SIGTERM)


def look(model: LanguageModel) -> dict[str, Any]:
    """A number that depends on the weights."""
    return {"loss": sum(float(p.detach().double().square().sum()) for p in model.parameters())}


def begun(config: TrainConfig, folder: Path, seed: int = 0) -> tuple[loop.Training, Snapshots]:
    """As the stage begins: fresh, or from the newest checkpoint in `folder`."""
    training, snapshots = made_training(config, seed), Snapshots(folder / "state", config.keep_last)
    snapshot = snapshots.load()
    if snapshot is not None:
        training.restore(snapshot)
    return training, snapshots


def fitted(config: TrainConfig, folder: Path, seed: int = 0, interrupt_at: int | None = None) -> loop.Training:
    """Run to the end, or until the signal that comes after `interrupt_at` steps (raises `Interrupted`)."""
    training, snapshots = begun(config, folder, seed)
    record = SignallingRecord(folder / "metrics.jsonl", interrupt_at)
    record.rewind(training.state.step)
    with listening() as interrupt:
        loop.fit(training, around(record, snapshots, interrupt, training))
    return training


def around(record: Record, snapshots: Snapshots, interrupt: Interrupt, training: loop.Training) -> loop.Surroundings:
    bar = Progress("train", training.config.steps or 0, seconds=1e9)
    return loop.Surroundings(record, snapshots, interrupt, bar, "demo", look, lambda: None)


def losses(folder: Path) -> list[tuple[int, float, float]]:
    rows = [row for row in Record(folder / "metrics.jsonl").rows() if "event" not in row]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def digest(weights: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(weights.items()):
        sha.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def gradients(accumulate: int, world: World | None = None) -> dict[str, Tensor]:
    """The gradient of the first global batch of 32 ragged rows, divided in `accumulate` micro-batches on each process."""
    settings = {"steps": 5, "accumulate": accumulate, "clip": 0.0, "optimizer": {"name": "sgd", "lr": 1e-3}, "batcher": "padded"}
    training = made_training(TrainConfig.model_validate(settings), rows=32, world=world)
    training.step()
    return {name: p.grad.clone() for name, p in training.worker.master.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    from safetensors.torch import save_file

    os.environ |= {"RANK": sys.argv[1], "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2]}
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    us = World.join()
    found = gradients(int(sys.argv[4]), us)
    if us.first:
        save_file(found, sys.argv[3])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
