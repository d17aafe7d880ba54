"""Augmentation and subsets by ablation: held-out bits per byte with and without, paired by seed, printed whatever the sign.

    .venv/bin/python benchmarks/augmentation.py [--seeds 5] [--arms synonyms typos …] [--steps 200] [--smoke] [--json] [path=value …]

Each seed is a split, an initialisation and an order of its own; the arms of one seed share all three, while each arm's tokenizer is
learnt from its own dialogs, as it would be in use. An augmentation is compared with training on the dialogs alone, with as many
updates; a subset with a random one of its size. Judged on the untouched test split of that seed. The interval is Student's, over the
paired differences of the seeds; below 0 is better. Trainings of one thread run side by side, one on each core (or each `--threads`);
finished ones are found again under --home. A small model on a little data is where augmentation has most to give.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from _common import Line, parser
from _common import say as said

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "lexical" / "th_en_US_v2.dat.gz"
SUBSETS = ("random_subset", "stratified", "k_center")
SHARE = 0.5
SMOKE = ("synonyms", "typos", "random_subset")
INFINITE = float("inf")


@dataclass(frozen=True)
class Arm:
    """One way to prepare the training split: what it is called, the settings in which it differs, and the arm it is compared with."""

    name: str
    settings: tuple[str, ...] = ()
    beside: str = "plain"


@dataclass(frozen=True)
class Compared:
    """Bits per byte on test, mean over seeds, of an arm and of the one beside it; the mean difference with its 95 % interval."""

    arm: str
    beside: str
    seeds: int
    bits_per_byte: float
    of_beside: float
    difference: float
    low: float
    high: float
    differences: tuple[float, ...]


def arms() -> dict[str, Arm]:
    """Every arm by name: no change, each augmentation that needs no endpoint, three light ones together, and the subsets."""
    from chattune.core.part import kind

    found = [Arm("plain")]
    for name in kind("augmentations").names():
        part = kind("augmentations").load(name)
        if "endpoint" not in part.model_fields:
            thesaurus = [f"augment.augmentations.{name}.thesaurus={DATA}"] if name == "synonyms" and DATA.exists() else []
            rate = ["augment.augmentations.turn_shuffle.rate=0.5"] if name == "turn_shuffle" else []
            found.append(Arm(name, (f"augment.augmentations=[{name}]", *thesaurus, *rate)))
    found.append(Arm("three together", ("augment.augmentations=[synonyms, typos, word_swap]",)))
    found += [
        Arm(name, (f"balance.balancer={name}", f"balance.balancer.share={SHARE}"), "plain" if name == SUBSETS[0] else SUBSETS[0])
        for name in SUBSETS
    ]
    return {arm.name: arm for arm in found}


def judged(arm: Arm, seed: int, home: Path, settings: Sequence[str]) -> float:
    """Bits per byte on the test split of a model that was trained on this arm's dialogs."""
    import chattune
    from chattune.evaluate.loss import split_loss
    from chattune.models.checkpoint import Checkpoint
    from chattune.tokens.token_set import TokenSet

    result = chattune.run({}, [*settings, *arm.settings, f"seed={seed}"], home=home, until="train")
    checkpoint, tokens = Checkpoint.open(result.run), TokenSet.open(result.runs["prepare"])
    model = checkpoint.model()
    context = model.family.context
    loss = split_loss(model, tokens.split("test"), tokens.tokenizer.byte_lengths, context=context, overlap=context // 2)
    return float(loss.bits_per_byte)


def compared(name: str, beside: str, values: Mapping[str, Sequence[float]]) -> Compared:
    """The paired differences of two arms and Student's interval of their mean."""
    from scipy.stats import t

    mine, theirs = values[name], values[beside]
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    mean = statistics.fmean(differences)
    half = INFINITE
    if len(differences) > 1:
        half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    means, rounded = (statistics.fmean(mine), statistics.fmean(theirs)), tuple(round(value, 5) for value in differences)
    return Compared(name, beside, len(differences), *means, mean, mean - half, mean + half, rounded)


def say(found: Compared, as_json: bool) -> None:
    verdict = "better" if found.high < 0 else "worse" if found.low > 0 else "no difference shown"
    if as_json:
        mine, theirs = found.bits_per_byte, found.of_beside
        line = Line(f"augmentation, {found.arm}", found.beside, theirs / mine, None, None, mine, theirs, "bits per byte")
        ends = {name: None if value in (INFINITE, -INFINITE) else value for name, value in (("low", found.low), ("high", found.high))}
        more = {"seeds": found.seeds, "difference": found.difference, **ends, "differences": found.differences, "verdict": verdict}
        said(line, as_json, more)
        return
    print(
        f"{found.arm:24} {found.bits_per_byte:.4f} beside {found.beside} {found.of_beside:.4f}   "
        f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}] over {found.seeds} seeds: {verdict}", flush=True,
    )  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "", peers=False)
    options.add_argument("--seeds", type=int, default=5, help="paired seeds")
    options.add_argument("--arms", nargs="+", metavar="ARM", help="only these")
    options.add_argument("--steps", type=int, default=200, help="updates of every training")
    options.add_argument("--smoke", action="store_true", help="three arms and 100 updates: whether it runs, and no finding")
    options.add_argument("--home", type=Path, help="where runs are kept; none: nowhere")
    options.add_argument("overrides", nargs="*", help="further settings of every arm, as collect.sources=chitchat")
    chosen = options.parse_args()
    known = arms()
    wanted = [name for name in chosen.arms or (SMOKE if chosen.smoke else known) if name != "plain"]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"no arm is called {unknown[0]!r}; there are {', '.join(known)}")
    settings = [
        "collect.sources=chatterbot-english", "prepare.vocabulary=512", "model.layers=2", "model.width=64", "model.heads=2",
        "model.context=64", "train.batch_tokens=1024", f"train.steps={100 if chosen.smoke else chosen.steps}", "train.compile=off",
        "train.evaluations=4", "train.precision=float32", f"train.threads={chosen.threads or 1}", *chosen.overrides,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as nowhere:
        run(wanted, known, Bench(chosen.home or Path(nowhere), tuple(settings), chosen.seeds, chosen.threads or 1), chosen.json)


@dataclass(frozen=True)
class Bench:
    """Where runs lie, the settings that all arms share, the seeds, and threads of each training."""

    home: Path
    settings: tuple[str, ...]
    seeds: int
    threads: int = 1


def run(wanted: Sequence[str], known: dict[str, Arm], bench: Bench, as_json: bool) -> None:
    """Each arm with all seeds, beside the one that it is compared with; a line for each, as soon as both are there."""
    import chattune

    _quiet()
    for seed in range(bench.seeds):  # what the arms of a seed share is made before they start side by side
        chattune.run({}, [*bench.settings, f"seed={seed}"], home=bench.home, until="split")
    needed = dict.fromkeys(name for arm in wanted for name in (known[arm].beside, arm))
    found: dict[str, dict[int, float]] = {name: {} for name in needed}
    workers = max(1, len(os.sched_getaffinity(0)) // bench.threads)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"), _quiet) as pool:
        waiting: dict[Future[float], tuple[str, int]] = {
            pool.submit(judged, known[name], seed, bench.home, bench.settings): (name, seed)
            for name in needed for seed in range(bench.seeds)
        }  # fmt: skip
        left = list(wanted)
        for done in as_completed(waiting):
            name, seed = waiting[done]
            found[name][seed] = done.result()
            print(f"# {name}, seed {seed}: {found[name][seed]:.4f} bits per byte", file=sys.stderr, flush=True)
            while left and all(len(found[own]) == bench.seeds for own in (left[0], known[left[0]].beside)):
                values = {own: [found[own][number] for number in range(bench.seeds)] for own in (left[0], known[left[0]].beside)}
                say(compared(left[0], known[left[0]].beside, values), as_json)
                del left[0]


def _quiet() -> None:
    from chattune.core.progress import talk

    talk().quiet = True


if __name__ == "__main__":
    main()
