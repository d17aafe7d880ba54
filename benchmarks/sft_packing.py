"""Fine-tuning on short dialogues: loss-bearing tokens a second on model a (8 layers, d 512, context 256, vocabulary 8192).

The same dialogues for all: lengths drawn from a log-normal with mean 30 tokens, the second half of each is the reply that bears
loss. chattune's batchers (2048 positions an update) stand beside TRL's SFTTrainer with its defaults, with its packing, and with
each of these in float32 without gradient checkpointing, which is its fastest setting on some processors.

    .venv/bin/python benchmarks/sft_packing.py [--json] [--rounds 3] [--dialogs 500] [--trl-python PATH]

TRL may need an environment of its own: ``--trl-python`` names its interpreter (torch, transformers, trl, datasets).
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
from _common import Measured, compare, fixed, in_turn, measured, memory, parser, step_clock, timed  # noqa: E402
from train_throughput import A, llama, training  # noqa: E402

WARMUP = 2
SHAPE = A


def rendered(count: int) -> list[tuple[list[int], list[float]]]:
    """Ids of each dialogue, and the loss weight of each id."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.rint(random.lognormal(np.log(30) - 0.32, 0.8, count)), 6, SHAPE.context).astype(int).tolist()
    return [(random.integers(8, SHAPE.vocabulary, length).tolist(), _weights(length)) for length in lengths]


def _weights(length: int) -> list[float]:
    reply = length // 2
    return [0.0] * (length - reply) + [1.0] * reply


def split_of(count: int) -> Any:
    """The dialogues as chattune holds them."""
    from chattune.tokens.token_set import TokenSplit

    return TokenSplit.of(rendered(count), {"pad": 0})


def ours(batcher: str, count: int, steps: int, **how: str) -> Measured:
    """chattune's loop over the dialogues, put together by `batcher`."""
    from chattune.core.part import kind
    from chattune.tokens.order import Order
    from chattune.tokens.windows import windows

    split = split_of(count)
    cut = windows(split, SHAPE.context)
    order = Order(split, cut, kind("batchers").load(batcher)(), SHAPE.rows * SHAPE.context, SHAPE.context, 0)
    loop = training(SHAPE, order, **how)

    def step() -> float:
        cursor = order.state_dict()
        labelled = float(order.next().weights.sum())
        order.load_state_dict(cursor)
        began = time.perf_counter()
        loop.step()
        seconds.append(time.perf_counter() - began)
        return labelled

    seconds: list[float] = []
    found = timed(step, steps, WARMUP)
    return measured(found.work, seconds[WARMUP:])


def random_padding(count: int, steps: int) -> Measured:
    """chattune's loop on randomly drawn dialogues, as many as 2048 positions hold, padded to the longest of each batch."""
    from chattune.tokens.order import collate
    from chattune.tokens.windows import windows

    split = split_of(count)
    cut = windows(split, SHAPE.context)
    order = np.random.default_rng(1).permutation(len(cut)).tolist()
    batches: list[Any] = []
    row: list[int] = []
    for window in order:
        if (len(row) + 1) * int(cut.length[[*row, window]].max()) > SHAPE.rows * SHAPE.context:
            batches.append(collate(split, cut, [[one] for one in row], 0))
            row = []
        row.append(window)
    source = fixed(batches)
    loop = training(SHAPE, source)
    labelled = iter([float(batches[number % len(batches)].weights.sum()) for number in range(steps + WARMUP)])

    def step() -> float:
        loop.step()
        return next(labelled)

    return timed(step, steps, WARMUP)


def trl(count: int, steps: int, **settings: Any) -> Measured:
    """TRL's SFTTrainer; `settings` beyond its defaults."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": ids, "labels": [own if weight else -100 for own, weight in zip(ids, weights, strict=True)]}
        for ids, weights in rendered(count)
    ]
    words = models.WordLevel({f"t{number}": number for number in range(SHAPE.vocabulary)}, unk_token="t0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="t0", eos_token="t1")
    times: list[float] = []
    work: list[float] = []

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, max_steps=steps + WARMUP, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), learning_rate=3e-4, **settings,
        )  # fmt: skip
        data = Dataset.from_list(rows)
        clock = step_clock(times, WARMUP)
        trainer = SFTTrainer(llama(SHAPE), args=config, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
        collate = trainer.data_collator

        def counted(examples: Any) -> Any:
            batch = collate(examples)
            work.append(float((batch["labels"] != -100).sum()))
            return batch

        trainer.data_collator = counted
        trainer.train()
    return measured(work[WARMUP : len(times)], times[WARMUP:])


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--dialogs", type=int, default=1500, help="dialogues in the set")
    options.add_argument("--steps", type=int, default=8, help="timed updates of each peer in each round")
    options.add_argument("--trl-python", default=None, help="interpreter that has TRL; none: this one")
    chosen = options.parse_args()
    count, steps = chosen.dialogs, chosen.steps
    wide = {"bf16": False, "gradient_checkpointing": False}
    found = in_turn(
        {
            "chattune, packed": lambda: ours("packed", count, steps),
            "chattune, packed and compiled": lambda: ours("packed", count, steps, compile="on"),
            "chattune, packed, int8 and compiled": lambda: ours("packed", count, steps, precision="int8", compile="on"),
            "padding to 256": lambda: ours("padded", count, steps),
            "random padding": lambda: random_padding(count, steps),
            "length buckets": lambda: ours("bucketed", count, steps),
            "TRL SFTTrainer, default": lambda: trl(count, 2 * steps),
            "TRL SFTTrainer, packing": lambda: trl(count, steps, packing=True, max_length=SHAPE.context),
            "TRL SFTTrainer, float32": lambda: trl(count, 2 * steps, **wide),
            "TRL SFTTrainer, packing, float32": lambda: trl(count, steps, packing=True, max_length=SHAPE.context, **wide),
        },
        chosen,
        {"TRL": chosen.trl_python} if chosen.trl_python else None,
    )
    bars = {"TRL SFTTrainer, default": (7.0, 12.0), "TRL SFTTrainer, packing": (2.7, 4.0)}
    for mine in (name for name in found if name.startswith("chattune")):
        compare("sft_packing", mine, found, bars, "loss-bearing tokens/s", chosen.json)
    if not chosen.json:
        print("peak memory, GiB: " + ", ".join(f"{name} {memory(runs):.2f}" for name, runs in found.items()))


if __name__ == "__main__":
    main()
