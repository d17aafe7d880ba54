"""Model families side by side: equal parameters, equal tokens, one corpus; and what depth and size do.

    python benchmarks/families.py                         # every family (about 20 minutes on two cores)
    python benchmarks/families.py --only depth            # GPT of 2 to 16 layers, with and without residual connections
    python benchmarks/families.py --only capacity         # GPT of five sizes at equal tokens
    python benchmarks/families.py --only repeated         # five sizes on little text read many times, plain and regularised

Each training is a program of its own, so that its memory is its own. Finished ones are found again under --home: the benchmark can be
stopped and started. A family's rate is the best of several on a sixth of the tokens, by validation loss; then it trains on all tokens,
and is judged on the untouched test split: bits per byte with paired differences to the first (`chattune compare`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = ("gpt", "encoder_decoder", "convolution", "memory_network", "lstm", "gru", "rnn", "seq2seq", "mlp")
FACTORS = (0.5, 1.0, 2.0)  # on the rates of Muon and of its AdamW part
MUON, ADAMW = 0.02, 0.005
WIDEST = 8.0  # no factor beyond, and none below its inverse
SHARE = 6  # a rate is tried on this part of the tokens
DEPTHS = (2, 4, 8, 16)
SIZES = ("0.3M", "0.6M", "1.2M", "2.5M", "5M")


@dataclass(frozen=True)
class Arm:
    """One training: what it is called in the table, and the settings in which it differs."""

    name: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """What all trainings of a run of this script share."""

    home: Path
    sources: str
    vocabulary: int
    context: int
    batch: int
    tokens: int
    threads: int | None

    def train(self, arm: Arm, tokens: int, factor: float = 1.0) -> dict[str, Any]:
        """Train the arm; its summary. A training that is finished is found."""
        settings = [
            f"collect.sources={self.sources}", f"prepare.vocabulary={self.vocabulary}", f"model.context={self.context}",
            f"train.batch_tokens={self.batch}", f"train.steps={max(1, round(tokens / self.batch))}", "train.compile=off",
            f"train.optimizer.lr={MUON * factor:g}", f"train.optimizer.adamw_lr={ADAMW * factor:g}", "train.evaluations=4",
            *([f"train.threads={self.threads}"] if self.threads else []), *arm.settings,
        ]  # fmt: skip
        return self.program("run", str(self.recipe()), *settings, "--until", "train", "--quiet")

    def recipe(self) -> Path:
        """An empty recipe: all that differs from the defaults is said in settings."""
        path = self.home / "families.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# nothing but the defaults\n", "utf-8")
        return path

    def program(self, *words: str) -> dict[str, Any]:
        command = [sys.executable, "-c", "import sys; from chattune.cli import main; sys.exit(main())"]
        done = subprocess.run([*command, *words, "--home", str(self.home), "--json"], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"chattune {' '.join(words)} ended with {done.returncode}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def best_factor(bench: Bench, arm: Arm) -> float:
    """The factor on the rates with the lowest validation loss on a share of the tokens; sought on where the best is an outer one."""
    losses: dict[float, float] = {}
    asked = list(FACTORS)
    while asked:
        for factor in asked:
            losses[factor] = bench.train(arm, bench.tokens // SHARE, factor)["stages"]["train"]["validation_loss"]
        best = min(losses, key=lambda factor: losses[factor])
        asked = [factor for factor in (best / 2, best * 2) if factor not in losses and 1 / WIDEST <= factor <= WIDEST]
    return best


def compared(bench: Bench, arms: Sequence[Arm], as_json: bool, page: str, *, choose: bool = True) -> list[dict[str, Any]]:
    """Train all arms and print their table; the rows."""
    runs, factors = [], []
    for arm in arms:
        factors.append(best_factor(bench, arm) if choose else 1.0)
        runs.append(bench.train(arm, bench.tokens, factors[-1])["run"])
        print(f"{arm.name}: rates × {factors[-1]:g}, {Path(runs[-1]).name}", file=sys.stderr, flush=True)
    found = bench.program("compare", *runs, "--html", str(bench.home / f"{page}.html"))
    rows = [{**row, "name": arm.name, "factor": factor} for row, arm, factor in zip(found["runs"], arms, factors, strict=True)]
    say(rows, as_json, page)
    if found["capacity"] and not as_json:
        from chattune.evaluate.compare import advice

        print(advice(found["capacity"]))
    return rows


def say(rows: Iterable[dict[str, Any]], as_json: bool, bench: str) -> None:
    """One JSON object a row, or a table in Markdown."""
    from chattune.evaluate.compare import difference_in_words, shown

    if as_json:
        for row in rows:
            print(json.dumps({"bench": bench, **row}), flush=True)
        return
    costs = ("parameters", "operations", "tokens", "tokens_per_second", "memory_bytes", "train_seconds")
    head = ("model", "bits per byte", "difference", "parameters", "operations/token", "tokens", "tokens/s", "memory", "time")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for row in rows:
        score = row["bits_per_byte"]
        cells = [row["name"], f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]", difference_in_words(row)]
        print("| " + " | ".join([*cells, *(shown(row, cost) for cost in costs)]) + " |", flush=True)


def families(bench: Bench, options: argparse.Namespace) -> None:
    """R071: every family at equal parameters and tokens; R070: what a token costs each in parallel training."""
    arms = [Arm(name, (f"model.name={name}", f"model.parameters={options.parameters}")) for name in options.families]
    rows = compared(bench, arms, options.json, "families")
    speeds = {row["name"]: row["tokens_per_second"] for row in rows}
    for name in ("rnn", "lstm", "gru"):
        if {"gpt", name} <= speeds.keys() and not options.json:
            print(f"gpt trains at {speeds['gpt'] / speeds[name]:.2f} times the tokens a second of {name}, at equal parameters (R070)")


def depth(bench: Bench, options: argparse.Namespace) -> None:
    """R072: layers with and without residual connections, at one width."""
    common = ("model.width=64", "model.init_outputs=same")
    arms = [
        Arm(f"{layers} layers, {word}", (*common, f"model.layers={layers}", f"model.residual={residual}"))
        for layers in DEPTHS
        for word, residual in (("residual", "true"), ("plain", "false"))
    ]
    compared(bench, arms, options.json, "depth")


def capacity(bench: Bench, options: argparse.Namespace) -> None:
    """R073, R074, R075: which size suits so many tokens."""
    arms = [Arm(size, (f"model.parameters={size}", "model.layers=4")) for size in options.sizes]
    compared(bench, arms, options.json, "capacity", choose=False)


def repeated(bench: Bench, options: argparse.Namespace) -> None:
    """E26: on little text read many times the larger model is not the better one, unless it is regularised."""
    from dataclasses import replace

    small = replace(bench, sources="[chatterbot-english]", vocabulary=min(bench.vocabulary, 2048))
    heavy = ("model.dropout=0.3", "train.optimizer.weight_decay=1.0")
    arms = [
        Arm(f"{size}, {word}", (f"model.parameters={size}", "model.layers=4", "train.keep=last", *more))
        for word, more in (("plain", ()), ("regularised", heavy))
        for size in options.sizes
    ]
    compared(small, arms, options.json, "repeated", choose=False)


PARTS = {"families": families, "depth": depth, "capacity": capacity, "repeated": repeated}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--only", choices=PARTS, default="families", help="which question")
    options.add_argument("--home", type=Path, default=Path("runs/families"), help="where the runs are kept and found")
    options.add_argument("--sources", default="[chatterbot-english, chitchat]", help="the corpus, as collect.sources takes it")
    options.add_argument("--families", nargs="+", default=list(FAMILIES), metavar="FAMILY", help="the first is compared with")
    options.add_argument("--parameters", default="1.3M", help="of each family")
    options.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="PARAMETERS", help="of capacity and repeated")
    options.add_argument("--tokens", type=int, default=600_000, help="that each training sees")
    options.add_argument("--vocabulary", type=int, default=4096)
    options.add_argument("--context", type=int, default=256)
    options.add_argument("--batch", type=int, default=2048, help="tokens of an update")
    options.add_argument("--threads", type=int, help="processor threads; none: one a core")
    chosen = options.parse_args()
    bench = Bench(chosen.home, chosen.sources, chosen.vocabulary, chosen.context, chosen.batch, chosen.tokens, chosen.threads)
    PARTS[chosen.only](bench, chosen)


if __name__ == "__main__":
    main()
