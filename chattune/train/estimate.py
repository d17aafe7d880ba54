"""What a run would cost, before it starts: parameters, tokens, steps, time, memory, disk.

Time is not modelled: the machine is asked. A few real updates of the recipe's own model on random tokens tell the speed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chattune.models.families import Family
from chattune.train.config import TrainConfig

if TYPE_CHECKING:
    from chattune.tokens.batch import Batch

BYTES_PER_TOKEN = 3.5  # of a byte-level BPE of a few thousand tokens on English chat; measured 3.2 to 3.8 (vocabulary 2048 to 8192)
_LEFT_OUT = 1.06  # evaluations, samples and checkpoints, as a share of the updates


def estimate(sections: Mapping[str, Any], tokens: int | None = None) -> dict[str, Any]:
    """The cost of the recipe's training.

    `sections`: resolved settings by name; `tokens`: training tokens where they are known, else guessed from the size of the
    sources. Gives ``parameters``, ``training_tokens``, ``tokens`` (seen over the run), ``steps``, ``seconds``,
    ``memory_bytes`` (peak of the process) and ``disk_bytes``.
    """
    model, config, seed = sections["model"], sections["train"], sections.get("seed", 0)
    prepare = sections.get("prepare")
    vocabulary = getattr(prepare, "vocabulary", None) or getattr(prepare, "vocabulary_at_most", None) or 4096
    known = tokens if tokens is not None else _guessed_tokens(sections.get("collect"))
    batch_tokens = config.batch_tokens or 16 * model.context_length()
    seconds_a_step, memory = _measured(model, config, vocabulary, batch_tokens, seed)
    if config.minutes is not None:
        steps = max(1, int(config.minutes * 60 / (seconds_a_step * _LEFT_OUT)))
        seconds = config.minutes * 60
    else:
        steps = config.steps or max(1, round((config.epochs or 1.0) * (known or batch_tokens) / batch_tokens))
        seconds = steps * seconds_a_step * _LEFT_OUT
    parameters = model.parameters(vocabulary)
    checkpoint = parameters * 4 * 3  # weights and, at most, two moments
    return {
        "parameters": parameters,
        "training_tokens": known,
        "tokens": steps * batch_tokens,
        "steps": steps,
        "seconds": round(seconds, 1),
        "memory_bytes": memory,
        "disk_bytes": checkpoint * (config.keep_last + 1) + parameters * 4 * 2 + (known or 0) * 3,
    }


def _guessed_tokens(collect: Any) -> int | None:
    if collect is None:
        return None
    sizes = [source["bytes"] for source in collect.fingerprint().values() if isinstance(source, Mapping) and "bytes" in source]
    share = 0.8
    return int(sum(sizes) * share / BYTES_PER_TOKEN) if sizes else None


def _measured(model: Family, config: TrainConfig, vocabulary: int, batch_tokens: int, seed: int) -> tuple[float, int]:
    """Seconds of one update, and the bytes that the process then holds."""
    import torch

    from chattune.train import device as computing
    from chattune.train.budget import Budget
    from chattune.train.loop import Training

    if config.threads:
        torch.set_num_threads(config.threads)
    batch = _random_batch(vocabulary, batch_tokens, model.context_length())
    where = computing.pick_device()
    master = model.build(vocabulary, seed).to(where)
    part = batch.shares(config.accumulate)[0].to(where)
    precision, _ = computing.choose_precision(
        master,
        lambda each: config.objective.view(each, part).loss.backward(),  # type: ignore[no-untyped-call]
        config.precision,
    )
    training = Training(config, computing.Worker(master, precision), _Same(batch), Budget(steps=8), seed, device=where)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        training.step()
        times.append(time.perf_counter() - began)
    return min(times[1:]), computing.peak_memory()


class _Same:
    """An order that gives the same batch again and again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def next(self) -> Batch:
        return self.batch

    def epoch_of_batches(self) -> Iterator[Batch]:
        yield self.batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": 0, "index": 0}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Nothing to go to."""


def _random_batch(vocabulary: int, tokens: int, context: int) -> Batch:
    import torch

    from chattune.tokens.batch import Batch

    rows = max(1, tokens // context)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, context + 1), generator=random)
    place = torch.arange(context).expand(rows, -1).contiguous()
    return Batch(
        inputs=ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous(), weights=torch.ones(rows, context), positions=place,
        segments=torch.zeros_like(place, dtype=torch.int32),
    )  # fmt: skip
