"""What training by a recipe takes on this machine, found by doing a little of it: a program of its own, so that its memory is its own.

Reads one JSON object from stdin and prints one: see `measured`. It takes the way of the stage `train` to its first updates, looks and
replies, and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core.errors import ChattuneError
from chattune.core.part import choose
from chattune.models.families import Family
from chattune.train.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np

    from chattune.tokens.token_set import TokenSplit
    from chattune.train.loop import Training

SECONDS, MOST, LEAST = 5.0, 40, 4  # updates are measured for so long, at most and at least so many
PROMPT, REPLY = 32, 32  # tokens of the reply whose speed is measured
FORM = "chattune-measured "  # before the result, so that it is found among what parts print


def measured(question: Mapping[str, Any]) -> dict[str, float]:
    """What a child process measures.

    `question`: ``model``, ``train``, ``seed`` as plain data; ``tokens``: a prepare run or none;
    ``vocabulary``: used where there are no tokens. Gives ``parameters`` (``trained`` of them are), ``seconds_a_step``,
    ``seconds_a_look``, ``seconds_a_save``, ``memory_bytes`` (peak of the process), ``snapshot_bytes`` (a checkpoint's), ``compiled``,
    ``batches_an_epoch`` and ``reply_tokens_per_second``. Raises `ChattuneError` where the recipe cannot be trained.
    """
    apart = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # the child is no member of a group of processes
    environment = {name: value for name, value in os.environ.items() if name not in apart}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # parts from outside are found there, too
    child = subprocess.run(
        [sys.executable, "-m", "chattune.train.measure"], input=json.dumps(question), capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    lines = [line for line in child.stdout.splitlines() if line.startswith(FORM)]
    if child.returncode or not lines:
        last = (child.stderr.strip().splitlines() or [f"it ended with {child.returncode}"])[-1]
        raise ChattuneError(f"a few updates of this recipe fail: {last}", path="train", rule="a recipe that can be trained")
    found: dict[str, float] = json.loads(lines[-1].removeprefix(FORM))
    return found


def main() -> None:
    """Answer the question on stdin."""
    from chattune.core.config import validate

    question = json.loads(sys.stdin.read())
    config = validate(TrainConfig, question["train"], prefix="train").model_copy(update={"processes": 1})
    found = _measure(config, choose(Family, question["model"]), question)
    print(FORM + json.dumps(found))


def _measure(config: TrainConfig, model: Family, question: Mapping[str, Any]) -> dict[str, float]:
    import torch

    from chattune.tokens.token_set import TokenSet
    from chattune.train import device as computing
    from chattune.train import stage
    from chattune.train.budget import Budget
    from chattune.train.loop import Training
    from chattune.train.world import World

    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    tokens: Any = TokenSet.open(Path(question["tokens"])) if question["tokens"] else _MadeUp(question["vocabulary"], model, config)
    where = computing.pick_device()
    computing.deterministic(where)
    # Weights to start from have the shape of fresh ones, and cost the same.
    begun = stage._Begun(config, model, question["seed"], tokens, None, Path(), where, World())
    master = begun.master()
    order = stage._order(config, master, tokens, begun.seed, 1.0)
    # As many updates as would come: they decide whether compiling is worth its time.
    choice, _ = stage._choice(None, master, order, config, stage._budget(config, order.batches_per_epoch, 1.0), begun.us)
    training = Training(config, computing.Worker(master, choice.precision), order, Budget(steps=1000), begun.seed, device=where)
    if choice.compile:
        training.worker.model.hidden = computing.compiled(training.worker.model)  # type: ignore[method-assign]
    training.worker.model.train()
    look = begun.look(master, begun.us)
    speed = _reply_speed(training)
    seconds_a_look = _look(training, look)
    seconds_a_step = _step(training)
    _look(training, look)
    training.keep_best(0.0, training.chosen())
    seconds_a_save, snapshot = _save(training)
    return {
        "parameters": sum(p.numel() for p in master.parameters()), "trained": sum(p.numel() for p in training.parameters),
        "seconds_a_step": seconds_a_step, "seconds_a_look": seconds_a_look, "reply_tokens_per_second": speed,
        "seconds_a_save": seconds_a_save, "snapshot_bytes": snapshot, "memory_bytes": computing.peak_memory(),
        "compiled": choice.compile, "batches_an_epoch": order.batches_per_epoch,
    }  # fmt: skip


def _step(training: Training) -> float:
    """Seconds of one update, the mean after the first."""
    training.step()
    began, count = time.perf_counter(), 0
    while count < LEAST or (count < MOST and time.perf_counter() - began < SECONDS):
        training.step()
        count += 1
    return (time.perf_counter() - began) / count


def _look(training: Training, look: Any) -> float:
    began = time.perf_counter()
    with training.shown() as model:
        look(model)
    return time.perf_counter() - began


def _reply_speed(training: Training) -> float:
    """Tokens a second of one reply, after a prompt of `PROMPT` tokens."""
    import torch

    with training.shown() as model, torch.inference_mode():
        assert model is not None
        room = min(PROMPT + REPLY, model.family.context_length())
        prompt = max(1, room - REPLY)
        cache = model.new_cache(1, room)
        model(torch.zeros(1, prompt, dtype=torch.long, device=model.device), cache=cache)
        began = time.perf_counter()
        for _ in range(room - prompt):
            model(torch.zeros(1, 1, dtype=torch.long, device=model.device), cache=cache)
        return (room - prompt) / (time.perf_counter() - began)


def _save(training: Training) -> tuple[float, int]:
    """Seconds and bytes of one checkpoint, which is thrown away."""
    from chattune.train.state import Snapshots

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        training.save(Snapshots(Path(folder)))
        return time.perf_counter() - began, sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


@dataclass(frozen=True)
class _Words:
    """As much of a tokenizer as training asks for."""

    vocabulary: int

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        import numpy as np

        return np.full(self.vocabulary, 4)


class _MadeUp:
    """Tokens that stand in for those of conversations not yet prepared: random, four dialogs to a context."""

    def __init__(self, vocabulary: int, model: Family, config: TrainConfig) -> None:
        self.tokenizer, self.context = _Words(vocabulary), config.context or model.context_length()
        self.batch = config.batch_tokens or 16 * self.context

    def split(self, name: str) -> TokenSplit:
        import numpy as np

        from chattune.core.seeds import generator
        from chattune.tokens.control import CONTROL
        from chattune.tokens.token_set import TokenSplit

        length = max(4, self.context // 4)
        count = 3 * self.batch // length + 1 if name == "train" else 100
        ids = generator(0, "made up", name).integers(len(CONTROL), self.tokenizer.vocabulary, (count, length))
        ids[:, -1] = CONTROL.index("end")
        weights = np.ones((count, length), np.uint8)
        weights[:, 0] = 0
        control = {word: place for place, word in enumerate(CONTROL)}
        return TokenSplit(ids.astype(np.uint32).ravel(), weights.ravel(), np.arange(count + 1) * length, control)


if __name__ == "__main__":
    main()
