"""Training tokens a second beside Hugging Face Trainer, nanoGPT's loop and plain PyTorch, with AdamW and clipping at 1.

Models: a (8 layers, d 512, context 256, vocabulary 8192, batch 8×256), b (6 × 384, context 256, characters, batch 16×256; also the
price of dropout 0.2), c (12 × 768, context 512, vocabulary 50304, batch 2×512). Trainer and the plain loop train transformers'
Llama of the very shape that chattune trains; nanoGPT's loop trains a GPT-2 of as many parameters. int8 is a setting
(`train.precision=int8`) with other arithmetic (int8_loss.py compares losses). All see the same random tokens,
each in a process of its own, in turn, round by round; medians are quoted.

The share of the measured peak of matrix products, which carries over from one processor to another, counts operations of
forward and backward as three times those of a forward pass.

    .venv/bin/python benchmarks/train_throughput.py [--json] [--model a] [--rounds 3] [--steps 6] [--peers chattune Hugging]
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from _common import Measured, compare, enough, fixed, in_turn, measured, memory, parser, rate, step_clock, timed  # noqa: E402

from chattune.models.products import int8_gain  # noqa: E402

WARMUP = 2
INT8, INT8_COMPILED = "chattune, int8", "chattune, int8 and compiled"


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    hidden: int
    context: int
    vocabulary: int
    rows: int


A = Shape(8, 512, 8, 1376, 256, 8192, 8)
B = Shape(6, 384, 6, 1024, 256, 65, 16)
C = Shape(12, 768, 12, 2048, 512, 50304, 2)


def tokens(shape: Shape, count: int) -> torch.Tensor:
    """(count, rows, context + 1) random ids."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(shape.vocabulary, (count, shape.rows, shape.context + 1), generator=random)


def llama(shape: Shape) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, max_position_embeddings=shape.context, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def family(shape: Shape, dropout: float = 0.0) -> Any:
    from chattune.models.families.gpt import GPT

    return GPT(
        layers=shape.layers, width=shape.width, heads=shape.heads, hidden=shape.hidden, context=shape.context, qk_norm=False,
        dropout=dropout,
    )  # fmt: skip


def training(shape: Shape, order: Any, *, precision: str = "auto", compile: str = "off", dropout: float = 0.0) -> Any:
    """chattune's own loop over `order`, in the precision that its start-up measurement favours, or in that given."""
    from chattune.train import device
    from chattune.train.budget import Budget
    from chattune.train.config import TrainConfig
    from chattune.train.loop import Training

    config = TrainConfig.model_validate({"steps": 1000, "optimizer": {"name": "adamw", "lr": 3e-4}, "schedule": "constant"})
    master = family(shape, dropout).build(shape.vocabulary, 0)
    cursor = order.state_dict()
    batch = order.next()
    order.load_state_dict(cursor)
    chosen, why = device.choose_precision(master, lambda m: config.objective.view(m, batch).loss.backward(), precision)
    print(f"# chattune computes in {why}", file=sys.stderr)
    worker = device.Worker(master, chosen)
    if compile == "on":
        worker.model.hidden = device.compiled(worker.model)  # type: ignore[method-assign]
    worker.model.train()
    return Training(config, worker, order, Budget(steps=1000), 0)


def ours(shape: Shape, steps: int, **how: Any) -> Measured:
    """chattune's own loop."""
    from chattune.tokens.batch import Batch

    place = torch.arange(shape.context).expand(shape.rows, -1).contiguous()
    none = torch.zeros_like(place, dtype=torch.int32)
    batches = [
        Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(shape.rows, shape.context), place, none)
        for ids in tokens(shape, steps + WARMUP)
    ]
    loop = training(shape, fixed(batches), **how)

    def step() -> float:
        loop.step()
        return shape.rows * shape.context

    return timed(step, steps, WARMUP)


def plain_loop(shape: Shape, steps: int, bf16: bool = False) -> Measured:
    """What one writes by hand around transformers' Llama: forward, loss, backward, clip, fused AdamW."""
    model, ids = llama(shape), iter(tokens(shape, steps + WARMUP))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)

    def step() -> float:
        rows = next(ids)[:, :-1]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return shape.rows * shape.context

    return timed(step, steps, WARMUP)


def trainer(shape: Shape, steps: int, bf16: bool = False) -> Measured:
    """Hugging Face Trainer, timed by its own step callbacks."""
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": row, "labels": row} for row in tokens(shape, steps + WARMUP)[:, :, :-1].flatten(0, 1)]
    times: list[float] = []

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=shape.rows, max_steps=steps + WARMUP, bf16=bf16, use_cpu=not torch.cuda.is_available(),
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=3e-4,
        )  # fmt: skip
        Trainer(model=llama(shape), args=arguments, train_dataset=data, callbacks=[step_clock(times, WARMUP)]).train()
    return measured([shape.rows * shape.context] * (len(times) - WARMUP), times[WARMUP:])


def nano(shape: Shape, steps: int, dropout: float = 0.0) -> Measured:
    """nanoGPT's loop on a GPT-2 of the same layers and width."""
    import nano_loop

    random = torch.Generator().manual_seed(0)
    ids = tokens(shape, steps + WARMUP).flatten()
    torch.manual_seed(0)
    model = nano_loop.NanoGPT(nano_loop.Shape(shape.layers, shape.heads, shape.width, shape.context, shape.vocabulary, dropout))
    recipe = nano_loop.Recipe(steps=steps + WARMUP, rows=shape.rows)
    times: list[float] = []
    nano_loop.train(
        model, recipe, lambda: nano_loop.crops(ids, shape.rows, shape.context, random), lambda *_: enough(times, WARMUP), times
    )
    return measured([shape.rows * shape.context] * (len(times) - WARMUP), times[WARMUP:])


def products(dtype: torch.dtype, size: int = 2048) -> Measured:
    """Operations of the product of two square matrices, and the seconds they take."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))

    def step() -> float:
        torch.mm(a, b)
        return 2.0 * size**3

    return timed(step, 8, 2)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", choices=["a", "b", "c"], default="a")
    options.add_argument("--steps", type=int, default=6, help="timed updates of each peer in each round")
    chosen = options.parse_args()
    shape, steps = {"a": A, "b": B, "c": C}[chosen.model], chosen.steps
    peers: dict[str, Callable[[], Measured]] = {
        "chattune": lambda: ours(shape, steps),
        "chattune, compiled": lambda: ours(shape, steps, compile="on"),
        INT8: lambda: ours(shape, steps, precision="int8"),
        INT8_COMPILED: lambda: ours(shape, steps, precision="int8", compile="on"),
        "Hugging Face Trainer, default": lambda: trainer(shape, steps),
        "Hugging Face Trainer, bf16": lambda: trainer(shape, steps, bf16=True),
        "nanoGPT's loop": lambda: nano(shape, steps),
        "plain PyTorch loop, fp32": lambda: plain_loop(shape, steps),
        "plain PyTorch loop, bf16 autocast": lambda: plain_loop(shape, steps, bf16=True),
    }
    if (gain := int8_gain()) < 1:
        print(f"# not measured: {INT8}: its products have {gain:.2f} of float32's speed on this processor", file=sys.stderr)
        del peers[INT8], peers[INT8_COMPILED]
    if chosen.model == "b":
        peers |= {
            "chattune, dropout 0.2": lambda: ours(shape, steps, dropout=0.2),
            "nanoGPT's loop, dropout 0.2": lambda: nano(shape, steps, dropout=0.2),
        }
    peaks: dict[str, Callable[[], Measured]] = {
        "matrix products, fp32": lambda: products(torch.float32),
        "matrix products, bf16": lambda: products(torch.bfloat16),
    }
    found = in_turn(peers | peaks, chosen)
    peak = {name: rate(found.pop(name)) for name in peaks if name in found}
    bars: dict[str, tuple[float | None, float | None]] = {"nanoGPT's loop": (3.3, 4.7)}
    if chosen.model == "a":
        bars |= {"Hugging Face Trainer, default": (3.5, 5.0), "Hugging Face Trainer, bf16": (1.5, 2.0)}
    for mine in (name for name in found if name.startswith("chattune") and "dropout" not in name):
        compare(f"train_throughput {chosen.model}", mine, found, bars, "tokens/s", chosen.json)
    if chosen.json:
        return
    operations = 3 * family(shape).operations(shape.vocabulary, shape.context)
    for name, runs in found.items():
        shares = "  ".join(f"{rate(runs) * operations / top:6.1%} of {what}" for what, top in peak.items())
        print(f"{name:36} {rate(runs):9,.0f} tokens/s  {memory(runs):5.2f} GiB  {shares}")
    for what, top in peak.items():
        print(f"{what:36} {top / 1e9:9,.0f} GFLOP/s")
    for name in ("chattune", "nanoGPT's loop"):
        if found.get(name) and (dropping := found.get(f"{name}, dropout 0.2")):
            print(f"dropout 0.2 costs {name} {1 - rate(dropping) / rate(found[name]):.1%} of its speed   (bar 12 %, moonshot 5 %)")


if __name__ == "__main__":
    main()
