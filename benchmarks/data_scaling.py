"""What more data gives, and what more varied data gives: a curve fitted to held-out losses and checked on the largest cell.

    .venv/bin/python benchmarks/data_scaling.py [--dialogs 256] [--fractions 1/16 … 1/2 1] [--seeds 2] [--smoke] [--json]
    .venv/bin/python benchmarks/data_scaling.py --widths 32 64 128      # a grid of sizes and data: which of them is the limit

A small GPT is trained on fractions of the training dialogs of the built-in English data, drawn anew by each seed, the smaller
within the larger. One tokenizer, one validation and one test split for all. Equal rule of stopping: a constant rate, averaged
weights, looks at the validation loss at steps an eighth apart, the weights of the lowest one, the end when 6 looks in a row
were no better. Judged once on the untouched test split, in nats a token. The law is fitted without the largest cell, which it
then predicts.

"Varied": as many tokens from dialogs of all topics as from those of one; topics are clusters of what users say
(chattune/features). One that holds more than half of all tokens is nearly everything, and counts as no topic.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _common import Line, parser, say

if TYPE_CHECKING:
    from chattune.evaluate.loss import SplitLoss
    from chattune.evaluate.scaling import Scaling
    from chattune.tokens.token_set import TokenSet, TokenSplit

FRACTIONS = ("1/16", "1/8", "1/4", "1/2", "1")
PATIENCE = 6  # looks in a row without a lower validation loss
UNIT = "nats a token"


@dataclass(frozen=True)
class Bench:
    """What all trainings share."""

    steps: int  # at most
    layers: int = 2
    context: int = 128
    batch: int = 2048
    look: int = 40  # validation dialogs


@dataclass(frozen=True)
class Cell:
    """One training: its data (target tokens that are different, and dialogs), where it was best, its loss on each test dialog."""

    name: str
    seed: int
    parameters: int
    tokens: int
    dialogs: int
    step: int
    seen: int
    ended: bool  # by the rule; else by the bound on steps
    test: SplitLoss

    @property
    def passes(self) -> str:
        """How often the data was read until the best look; and whether it was the bound that ended the training."""
        return f"{self.seen / max(1, self.tokens):.1f}{'' if self.ended else ' (bound)'}"

    def told(self) -> dict[str, Any]:
        own = {key: value for key, value in asdict(self).items() if key != "test"}
        return {**own, "loss": self.test.loss, "bits_per_byte": self.test.bits_per_byte}


def part(split: TokenSplit, chosen: Iterable[int]) -> TokenSplit:
    """The split with these dialogs alone, in this order."""
    from chattune.tokens.token_set import TokenSplit

    pieces = [slice(split.offsets[number], split.offsets[number + 1]) for number in chosen]
    ids, weights = (np.concatenate([np.asarray(values)[piece] for piece in pieces]) for values in (split.ids, split.weights))
    lengths = [piece.stop - piece.start for piece in pieces]
    return TokenSplit(ids, weights, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), split.control)


def targets(split: TokenSplit) -> np.ndarray:
    """(dialogs,) tokens that bear loss."""
    running = np.concatenate([[0], np.cumsum(np.asarray(split.weights) > 0)])
    return running[split.offsets[1:]] - running[split.offsets[:-1]]


def looks(steps: int) -> list[int]:
    """The steps after which the validation loss is looked at: each an eighth later than the one before."""
    found = [min(8, steps)]
    while found[-1] < steps:
        found.append(min(steps, found[-1] + max(2, found[-1] // 8)))
    return found


def trained(name: str, bench: Bench, width: int, tokens: TokenSet, data: TokenSplit, seed: int) -> Cell:
    """One training on `data`, judged with its best weights."""
    from chattune.evaluate.loss import split_loss
    from chattune.models.families.gpt import GPT
    from chattune.tokens.order import Order
    from chattune.tokens.windows import windows
    from chattune.train.budget import Budget
    from chattune.train.config import TrainConfig
    from chattune.train.device import Worker
    from chattune.train.loop import Training

    lengths = tokens.tokenizer.byte_lengths
    config = TrainConfig.model_validate({
        "steps": bench.steps, "schedule": {"name": "constant"}, "regularizers": [{"name": "ema", "decay": 0.98}],
        "optimizer": {"name": "muon", "lr": 0.03, "adamw_lr": 0.008},
    })  # fmt: skip
    shape = GPT.model_validate({"layers": bench.layers, "width": width, "heads": max(1, width // 32), "context": bench.context})
    model = shape.build(tokens.tokenizer.vocabulary, seed).train()
    order = Order(data, windows(data, bench.context), config.batcher, bench.batch, bench.context, seed)
    training = Training(config, Worker(model, "float32"), order, Budget(steps=bench.steps), seed)
    since = 0
    best = (float("inf"), 0, 0)
    for step in looks(bench.steps):
        while training.state.step < step:
            training.step()
        weights = training.chosen()
        with training.wearing(weights) as worn:
            loss = split_loss(worn, tokens.split("validation"), lengths, context=bench.context, limit=bench.look).loss
        if loss < best[0]:
            best, since = (loss, step, training.state.tokens), 0
            training.keep_best(loss, weights)
        else:
            since += 1
        if since == PATIENCE:
            break
    with training.wearing(training.best_weights) as worn:
        test = split_loss(worn, tokens.split("test"), lengths, context=bench.context, overlap=bench.context // 2)
    count = sum(weight.numel() for weight in model.parameters())
    cell = Cell(name, seed, count, int(targets(data).sum()), len(data), best[1], best[2], since == PATIENCE, test)
    where = f"{name}, width {width}, seed {seed}: {cell.tokens:,} tokens of {cell.dialogs:,} dialogs"
    print(f"# {where}, test {test.loss:.4f} {UNIT}, best at step {cell.step}, {cell.passes} passes", file=sys.stderr, flush=True)
    return cell


def law(cells: Sequence[Cell]) -> Scaling:
    """The law of all cells, with intervals over cells and test conversations."""
    from chattune.evaluate.scaling import Cells, scaling

    sizes = [cell.parameters for cell in cells]
    data, losses = np.array([cell.tokens for cell in cells]), np.array([cell.test.loss for cell in cells])
    measured = Cells(data, losses, np.array(sizes) if len(set(sizes)) > 1 else None)
    # Dialogs are of any length, so that the same fraction is another number of tokens for each seed.
    last = np.array([(cell.name, cell.parameters) == (cells[-1].name, max(sizes)) for cell in cells])
    conversations = np.stack([*(cell.test.nll for cell in cells), cells[0].test.tokens], axis=1)
    return scaling(measured, last=last, conversations=conversations)


def of_topics(tokens: TokenSet, dialogs: Path, wanted: int, count: int) -> dict[str, np.ndarray]:
    """The largest topics of the training dialogs that hold `wanted` tokens, `count` at most: the numbers of their dialogs."""
    from chattune.dialogs.artifact import Dialogs
    from chattune.dialogs.balancing import topics_of

    size = targets(tokens.split("train"))
    topic = np.array(topics_of(Dialogs(dialogs).read("train"), 8, "lsa", 0))
    held = {name: np.flatnonzero(topic == name) for name in dict.fromkeys(topic.tolist())}
    able = {name: own for name, own in held.items() if wanted <= size[own].sum() <= size.sum() / 2}
    return dict(sorted(able.items(), key=lambda found: -len(found[1]))[:count])


def until(order: np.ndarray, size: np.ndarray, wanted: int) -> np.ndarray:
    """The first dialogs of `order` that hold `wanted` tokens, to the nearest dialog."""
    running = np.cumsum(size[order])
    return order[: 1 + int(np.abs(running - wanted).argmin())]


def variety(chosen: argparse.Namespace, prepared: tuple[TokenSet, Path], wanted: int) -> list[tuple[Cell, Cell]]:
    """Pairs (varied, narrow) of one topic and seed: as many tokens (`wanted`), the same initialisation."""
    from chattune.core.seeds import generator

    tokens, run = prepared
    whole, found = tokens.split("train"), []
    size = targets(whole)
    for topic, own in of_topics(tokens, run, wanted, chosen.topics).items():
        for seed in range(chosen.seeds):
            random = generator(seed, "variety", topic)
            narrow, varied = (until(random.permutation(pool), size, wanted) for pool in (own, len(whole)))
            pair = [
                trained(name, Bench(chosen.steps), chosen.widths[0], tokens, part(whole, dialogs), seed)
                for name, dialogs in (("all topics", varied), (f"one topic ({topic})", narrow))
            ]
            found.append((pair[0], pair[1]))
    return found


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and Student's 95 % interval."""
    from scipy.stats import t

    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, float("-inf"), float("inf")
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def told(found: Scaling, cells: Sequence[Cell], as_json: bool) -> None:
    """The table of cells, the law with intervals, and its error at the largest cell beside the bound of 3 %."""
    from chattune.evaluate.scaling import TRUSTED

    data, size = found.held_out.data, found.held_out.parameters
    laws = {
        "E": found.estimate(lambda law: law.floor), "b": found.estimate(lambda law: law.data_exponent),
        "elasticity of data": found.estimate(lambda law: law.data_elasticity(data)),
    }  # fmt: skip
    if size is not None:
        laws |= {
            "a": found.estimate(lambda law: law.size_exponent),
            "elasticity of size": found.estimate(lambda law: law.size_elasticity(size)),
        }
    check = found.held_out
    error = abs(check.error)
    if as_json:
        about = {"error": check.error, "unchanged_error": check.unchanged_error, "trusted": check.trusted, **asdict(check)}
        about |= {"cells": [cell.told() for cell in cells], "law": {name: asdict(value) for name, value in laws.items()}}
        ratio = TRUSTED / max(error, 1e-9)
        say(Line("data_scaling, largest cell", "its bound", ratio, 1.0, None, error, TRUSTED, "relative error"), True, about)
        least, most = (mean_loss(own for own in cells if own.name == end.name) for end in (cells[0], cells[-1]))
        say(Line(f"data_scaling, {cells[-1].name}", cells[0].name, least / most, None, None, most, least, UNIT), True)
        return
    print("| data | seed | parameters | tokens | dialogs | test, nats a token [95 %] | bits per byte | passes |")
    print("|---|---|---|---|---|---|---|---|")
    for cell in cells:
        value, low, high = interval(cell)
        counts = f"{cell.seed} | {cell.parameters:,} | {cell.tokens:,} | {cell.dialogs:,}"
        print(f"| {cell.name} | {counts} | {value:.4f} [{low:.4f}, {high:.4f}] | {cell.test.bits_per_byte:.4f} | {cell.passes} |")
    for name, value in laws.items():
        print(f"{name:20} {value}")
    print(f"largest cell, left out: predicted {check.predicted:.4f}, measured {check.measured:.4f}: {check.error:+.2%}", end=" ")
    print(f"(bound {TRUSTED:.0%}; the guess that nothing changes: {check.unchanged_error:+.2%})")
    if size is not None:
        print(found.advice(data, size))


def mean_loss(cells: Iterable[Cell]) -> float:
    return statistics.fmean(cell.test.loss for cell in cells)


def interval(cell: Cell) -> tuple[float, float, float]:
    """Nats a token on the test split, with its interval over conversations."""
    from chattune.evaluate import bootstrap

    return bootstrap.interval(np.stack((cell.test.nll, cell.test.tokens), axis=1), bootstrap.ratio, 0)


def told_variety(pairs: Sequence[tuple[Cell, Cell]], found: Scaling, as_json: bool) -> None:
    """All topics beside one, over pairs; and what the narrow data is worth in varied tokens by the curve."""
    if not pairs:
        print("# no topic holds enough tokens: nothing varied is compared with anything narrow", file=sys.stderr)
        return
    varied, narrow = (mean_loss(pair[side] for pair in pairs) for side in (0, 1))
    mean, low, high = paired([pair[0].test.loss - pair[1].test.loss for pair in pairs])
    verdict = "varied is better" if high < 0 else "narrow is better" if low > 0 else "no difference shown"
    worth = found.equivalent_data(narrow, found.held_out.parameters) if found.held_out.trusted else None
    if as_json:
        ends = {name: value if np.isfinite(value) else None for name, value in (("low", low), ("high", high))}
        about = {"difference": mean, **ends, "verdict": verdict, "pairs": [[cell.told() for cell in pair] for pair in pairs]}
        about["equivalent"] = {key: finite(value) for key, value in asdict(worth).items()} if worth else None
        say(Line("data_scaling, all topics", "one topic", narrow / varied, None, None, varied, narrow, UNIT), True, about)
        return
    for ours, theirs in pairs:
        own = f"{ours.tokens:,} tokens, {ours.test.loss:.4f}"
        print(f"{theirs.name}, seed {theirs.seed}: {theirs.tokens:,} tokens, {theirs.test.loss:.4f}; all topics: {own}")
    tokens = statistics.fmean(pair[1].tokens for pair in pairs)
    print(f"all topics less one topic: {mean:+.4f} [{low:+.4f}, {high:+.4f}] {UNIT} over {len(pairs)} pairs: {verdict}")
    print(f"{tokens:,.0f} tokens of one topic are worth {worth} of all" if worth else "no equivalent amount: the check failed")


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def prepare(home: Path, settings: Sequence[str], vocabulary: int) -> tuple[TokenSet, Path]:
    """The tokens of all dialogs, and the run that holds the dialogs."""
    import chattune
    from chattune.core.progress import talk
    from chattune.tokens.token_set import TokenSet

    talk().quiet = True
    result = chattune.run({}, [f"prepare.vocabulary={vocabulary}", *settings], home=home, until="prepare")
    return TokenSet.open(result.runs["prepare"]), result.runs["split"]


def main() -> None:
    options = parser(__doc__ or "", peers=False)
    options.add_argument("--dialogs", type=int, default=256, help="training dialogs at fraction 1, drawn from all; 0: all")
    options.add_argument("--fractions", nargs="+", type=Fraction, default=[*map(Fraction, FRACTIONS)], help="of these dialogs")
    options.add_argument("--widths", nargs="+", type=int, default=[64], help="of the model; three or more make a grid")
    options.add_argument("--seeds", type=int, default=2, help="choices of dialogs, initialisations and orders")
    options.add_argument("--steps", type=int, default=2400, help="updates of a training at most")
    options.add_argument("--topics", type=int, default=3, help="topics that all are compared with; 0: none")
    options.add_argument("--vocabulary", type=int, default=1024)
    options.add_argument("--smoke", action="store_true", help="the smallest size at which it runs: no finding")
    options.add_argument("--home", type=Path, help="where the prepared data is kept; none: nowhere")
    options.add_argument("overrides", nargs="*", help="settings of the data, as collect.sources=[chatterbot-english]")
    chosen = options.parse_args()
    if chosen.smoke:
        chosen.dialogs, chosen.steps, chosen.seeds, chosen.topics, chosen.vocabulary = 64, 24, 1, 1, 300
        chosen.fractions, chosen.widths = [Fraction(own) for own in ("1/8", "1/4", "1/2", "1")], [32]
    if len(set(chosen.fractions)) < 4 or not all(0 < own <= 1 for own in chosen.fractions):
        sys.exit("--fractions: at least 4 different ones above 0 and up to 1: three for the curve, and the largest to check it")
    if len(chosen.widths) == 2:
        sys.exit("--widths: one, or at least 3 for a grid")
    with tempfile.TemporaryDirectory() as nowhere:
        measure(chosen, prepare(chosen.home or Path(nowhere), chosen.overrides, chosen.vocabulary))


def measure(chosen: argparse.Namespace, prepared: tuple[TokenSet, Path]) -> None:
    """All cells, seed by seed, then the pairs."""
    import torch

    from chattune.core.seeds import generator

    torch.set_num_threads(chosen.threads or 1)
    tokens, bench = prepared[0], Bench(chosen.steps)
    whole = tokens.split("train")
    pool = min(chosen.dialogs or len(whole), len(whole))
    cells = []
    for seed in range(chosen.seeds):
        drawn = generator(seed, "data_scaling").permutation(len(whole))[:pool]
        for fraction in sorted(set(chosen.fractions)):
            data = part(whole, drawn[: max(1, round(pool * fraction))])
            cells += [trained(f"{fraction} of the dialogs", bench, width, tokens, data, seed) for width in chosen.widths]
    if bound := [cell.name for cell in cells if not cell.ended]:
        which = f"{len(bound)} trainings ({', '.join(dict.fromkeys(bound))}) ended at the bound of {chosen.steps} updates"
        print(f"# {which} and not by the rule: there the curve shows the bound as well. Raise --steps.", file=sys.stderr)
    found = law(cells)
    told(found, cells, chosen.json)
    if chosen.topics:
        wanted = 4 * int(statistics.fmean(cell.tokens for cell in cells if cell.name == cells[0].name))
        told_variety(variety(chosen, prepared, wanted), found, chosen.json)


if __name__ == "__main__":
    main()
