"""Augmentation and subsets by ablation: held-out bits per byte with and without, paired by seed, printed whatever the sign.

    .venv/bin/python benchmarks/augmentation.py [--seeds 5] [--arms synonyms typos k_center …] [--steps 300] [--json] [path=value …]

Each seed is a split, an initialisation and an order of its own; the arms of one seed share all three, while each arm's tokenizer is
learnt from its own dialogs, as it would be in use. An augmentation is compared with training on the dialogs alone, with as many
updates; a subset with a random one of its size. Judged on the untouched test split of that seed. The interval is Student's, over the
paired differences of the seeds; below 0 is better. Finished trainings are found again under --home. A small model on a little data is
where augmentation has most to give.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from _common import parser

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "lexical" / "th_en_US_v2.dat.gz"
SUBSETS = ("random_subset", "stratified", "k_center")
SHARE = 0.5


@dataclass(frozen=True)
class Arm:
    """One way to prepare the training split: what it is called, the settings in which it differs, and the arm it is compared with."""

    name: str
    settings: tuple[str, ...] = ()
    beside: str = "plain"


@dataclass(frozen=True)
class Compared:
    """Bits per byte on test, mean over seeds, of an arm and of the one beside it; the mean difference with its 95 % interval."""

    bench: str
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


def compared(name: str, beside: str, values: dict[str, list[float]]) -> Compared:
    """The paired differences of two arms and Student's interval of their mean."""
    from scipy.stats import t

    mine, theirs = values[name], values[beside]
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    mean = statistics.fmean(differences)
    half = float("inf")
    if len(differences) > 1:
        half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    means, rounded = (statistics.fmean(mine), statistics.fmean(theirs)), tuple(round(value, 5) for value in differences)
    return Compared("augmentation", name, beside, len(differences), *means, mean, mean - half, mean + half, rounded)


def say(found: Compared, as_json: bool) -> None:
    if as_json:
        plain = {name: value if value not in (float("inf"), float("-inf")) else None for name, value in asdict(found).items()}
        print(json.dumps(plain), flush=True)
        return
    verdict = "better" if found.high < 0 else "worse" if found.low > 0 else "no difference shown"
    print(
        f"{found.arm:24} {found.bits_per_byte:.4f} beside {found.beside} {found.of_beside:.4f}   "
        f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}] over {found.seeds} seeds: {verdict}", flush=True,
    )  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "", peers=False)
    options.add_argument("--seeds", type=int, default=5, help="paired seeds")
    options.add_argument("--arms", nargs="+", metavar="ARM", help="only these")
    options.add_argument("--steps", type=int, default=300, help="updates of every training")
    options.add_argument("--home", type=Path, help="where runs are kept; none: nowhere")
    options.add_argument("overrides", nargs="*", help="further settings of every arm, as collect.sources=chitchat")
    chosen = options.parse_args()
    known = arms()
    wanted = [name for name in chosen.arms or known if name != "plain"]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"no arm is called {unknown[0]!r}; there are {', '.join(known)}")
    settings = [
        "collect.sources=chatterbot-english", "prepare.vocabulary=512", "model.layers=2", "model.width=64", "model.heads=2",
        "model.context=64", "train.batch_tokens=1024", f"train.steps={chosen.steps}", "train.compile=off", "train.evaluations=4",
        "train.precision=float32", *([f"train.threads={chosen.threads}"] if chosen.threads else []), *chosen.overrides,
    ]  # fmt: skip
    from chattune.core.progress import talk

    talk().quiet = True
    with tempfile.TemporaryDirectory() as nowhere:
        run(wanted, known, chosen.seeds, chosen.home or Path(nowhere), settings, chosen.json)


def run(wanted: Sequence[str], known: dict[str, Arm], seeds: int, home: Path, settings: Sequence[str], as_json: bool) -> None:
    """Each arm with all seeds, after those that it is compared with; a line for each."""
    values: dict[str, list[float]] = {}

    def measure(name: str) -> None:
        if name not in values:
            values[name] = []
            for seed in range(seeds):
                values[name].append(judged(known[name], seed, home, settings))
                print(f"# {name}, seed {seed}: {values[name][-1]:.4f} bits per byte", file=sys.stderr, flush=True)

    for name in wanted:
        beside = known[name].beside
        measure(beside)
        measure(name)
        say(compared(name, beside, values), as_json)


if __name__ == "__main__":
    main()
