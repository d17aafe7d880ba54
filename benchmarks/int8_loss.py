"""Does the loss in int8 follow float32? The same model, data, order and updates in both, seed by seed, on real chat.

Bits per byte on the demo recipe's test split (chatterbot and chitchat); the difference is int8 minus float32 with a 95 % bootstrap
interval over conversations, summed over seeds. What two seeds of float32 differ by stands beside it.

    .venv/bin/python benchmarks/int8_loss.py [--json] [--seeds 3] [--steps 600] [--home runs]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch

CONTEXT = 128


def one(tokens: Any, precision: str, seed: int, steps: int, layers: int, width: int) -> tuple[Any, float]:
    """Test loss of one training, and the seconds of its updates."""
    from chattune.evaluate.loss import split_loss
    from chattune.models.families.gpt import GPT
    from chattune.tokens.order import Order
    from chattune.tokens.windows import windows
    from chattune.train.budget import Budget
    from chattune.train.config import TrainConfig
    from chattune.train.device import Worker
    from chattune.train.loop import Training

    family = GPT(layers=layers, width=width, context=CONTEXT)
    config = TrainConfig.model_validate({"steps": steps})
    split = tokens.split("train")
    order = Order(split, windows(split, CONTEXT), config.batcher, 8 * CONTEXT, CONTEXT, seed)
    model = family.build(tokens.tokenizer.vocabulary, seed).train()
    training = Training(config, Worker(model, precision), order, Budget(steps=steps), seed)  # type: ignore[arg-type]
    began = time.perf_counter()
    for _ in range(steps):
        training.step()
    seconds = time.perf_counter() - began
    return split_loss(model.eval(), tokens.split("test"), tokens.tokenizer.byte_lengths, context=CONTEXT), seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, default=600, help="updates of 1024 positions")
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--width", type=int, default=192)
    options.add_argument("--home", default="runs", help="where the prepared data is kept")
    options.add_argument("--threads", type=int)
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)

    import chattune
    from chattune.evaluate.bootstrap import interval, ratio
    from chattune.story import open_run

    tokens = open_run(chattune.run("demo", home=chosen.home, until="prepare").runs["prepare"])
    found: dict[str, list[Any]] = {"float32": [], "int8": []}
    for seed in range(chosen.seeds):
        for precision, losses in found.items():
            loss, seconds = one(tokens, precision, seed, chosen.steps, chosen.layers, chosen.width)
            losses.append(loss)
            print(f"seed {seed}, {precision}: {loss.bits_per_byte:.4f} bits per byte, {seconds:.0f} s", file=sys.stderr, flush=True)
    wide, narrow = (np.sum([loss.nll for loss in losses], axis=0) for losses in found.values())
    sums = np.stack([(narrow - wide) / np.log(2), np.sum([loss.bytes for loss in found["float32"]], axis=0)], axis=1)
    value, low, high = interval(sums, ratio, 0)
    each = {precision: [loss.bits_per_byte for loss in losses] for precision, losses in found.items()}
    spread = float(np.std(each["float32"], ddof=1)) if chosen.seeds > 1 else None
    if chosen.json:
        print(json.dumps({**each, "difference": value, "low": low, "high": high, "float32_seeds_std": spread}))
        return
    beside = "" if spread is None else f"; two float32 seeds differ by {spread * 2**0.5:.4f} (√2 · standard deviation)"
    print(f"int8 − float32: {value:+.4f} [{low:+.4f}, {high:+.4f}] bits per byte over {chosen.seeds} seeds{beside}")


if __name__ == "__main__":
    main()
