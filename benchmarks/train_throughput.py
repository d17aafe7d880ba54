"""Training tokens a second on model a (8 layers, d 512, 8 heads, context 256, vocabulary 8192), batch 8×256, AdamW, clip 1.0.

The peers train the same Llama-shaped network on the same random tokens in the same process, in turn, round by round; medians
are quoted. Hugging Face Trainer runs with its defaults and with ``bf16=True``; the plain loop is what one writes by hand
around transformers' Llama: forward, loss, backward, clip, fused AdamW.

    .venv/bin/python benchmarks/train_throughput.py [--json] [--rounds 3] [--steps 6]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from _common import Line, parser, say  # noqa: E402

LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY, ROWS, WARMUP = 8, 512, 8, 256, 8192, 8, 2


def tokens(count: int) -> torch.Tensor:
    """(count, context + 1) random ids."""
    return torch.randint(VOCABULARY, (count, CONTEXT + 1), generator=torch.Generator().manual_seed(0))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=1376, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def ours(steps: int) -> list[float]:
    """Seconds of each update of chattune's own loop."""
    from chattune.models.families.gpt import GPT
    from chattune.tokens.batch import Batch
    from chattune.train import device
    from chattune.train.budget import Budget
    from chattune.train.config import TrainConfig
    from chattune.train.loop import Training

    ids = tokens(ROWS * (steps + WARMUP))
    place = torch.arange(CONTEXT).expand(ROWS, -1).contiguous()

    class Fixed:
        def __init__(self) -> None:
            self.index = 0

        def next(self) -> Batch:
            rows = ids[self.index * ROWS : (self.index + 1) * ROWS]
            self.index += 1
            weights = torch.ones(ROWS, CONTEXT)
            segments = torch.zeros_like(place, dtype=torch.int32)
            return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), weights, place, segments)

        def state_dict(self) -> dict[str, int]:
            return {"epoch": 0, "index": self.index}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.index = state["index"]

    family = GPT(layers=LAYERS, width=WIDTH, heads=HEADS, hidden=1376, context=CONTEXT, qk_norm=False)
    config = TrainConfig.model_validate({"steps": 1000, "optimizer": {"name": "adamw", "lr": 3e-4}, "schedule": "constant"})
    master = family.build(VOCABULARY, 0)
    order = Fixed()
    batch = order.next()
    order.index = 0
    precision, why = device.choose_precision(master, lambda m: config.objective.view(m, batch).loss.backward(), "auto")
    training = Training(config, device.Worker(master, precision), order, Budget(steps=1000), 0)
    print(f"chattune computes in {why}", file=sys.stderr)
    return _timed(training.step, steps)


def plain_loop(steps: int, bf16: bool = False) -> list[float]:
    """Seconds of each update of a hand-written loop."""
    model, ids = llama(), tokens(ROWS * (steps + WARMUP))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    index = 0

    def step() -> None:
        nonlocal index
        rows = ids[index * ROWS : (index + 1) * ROWS, :-1]
        index += 1
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return _timed(step, steps)


def trainer(steps: int, bf16: bool = False) -> list[float]:
    """Seconds of each update of Hugging Face Trainer, from its own step callbacks."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ids = tokens(ROWS * (steps + WARMUP))[:, :-1]
    data = [{"input_ids": row, "labels": row} for row in ids]
    times: list[float] = []

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=ROWS, max_steps=steps + WARMUP, bf16=bf16, use_cpu=not torch.cuda.is_available(),
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=3e-4,
        )  # fmt: skip
        Trainer(model=llama(), args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    return times[WARMUP:]


def _timed(step: Callable[[], Any], steps: int) -> list[float]:
    times = []
    for number in range(steps + WARMUP):
        began = time.perf_counter()
        step()
        if number >= WARMUP:
            times.append(time.perf_counter() - began)
    return times


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--steps", type=int, default=6, help="timed updates of each peer in each round")
    chosen = options.parse_args()
    peers: dict[str, Callable[[int], list[float]]] = {
        "chattune": ours,
        "Hugging Face Trainer, default": trainer,
        "Hugging Face Trainer, bf16": lambda steps: trainer(steps, bf16=True),
        "plain PyTorch loop, fp32": plain_loop,
        "plain PyTorch loop, bf16 autocast": lambda steps: plain_loop(steps, bf16=True),
    }
    times: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(chosen.rounds):
        for name, run in peers.items():
            times[name] += run(chosen.steps)
    speed = {name: ROWS * CONTEXT / statistics.median(found) for name, found in times.items()}
    bars = {"Hugging Face Trainer, default": (2.4, 3.5), "Hugging Face Trainer, bf16": (1.0, 1.5)}
    for name, theirs in speed.items():
        if name != "chattune":
            bar, moonshot = bars.get(name, (None, None))
            mine = speed["chattune"]
            say(Line("train_throughput", name, mine / theirs, bar, moonshot, mine, theirs, "tokens/s"), chosen.json)


if __name__ == "__main__":
    main()
