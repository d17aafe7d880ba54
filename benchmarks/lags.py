"""How far back each family remembers: a value is shown, `lag` tokens later a query asks for it, and what stands between is noise.

Every family has about the same number of parameters and sees the same sequences. An answer is right when the value is the likeliest
of the eight; one in eight is chance. `--gradients` prints instead how much of the gradient of a fresh and of a trained recurrent
model reaches a token so and so many steps back. Figures are in RESULTS.md.

    python benchmarks/lags.py                      # all families, lags 10, 20, 50 and 100, five seeds: minutes on two cores
    python benchmarks/lags.py --families rnn lstm --lags 50 --seeds 3
    python benchmarks/lags.py --gradients
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from chattune.core.part import kind
from chattune.core.seeds import derived
from chattune.models.families import Family
from chattune.models.language_model import LanguageModel

VALUES, OTHERS = 8, 8
FIRST = 7  # ids below are control tokens
QUERY = FIRST + VALUES + OTHERS
VOCABULARY = QUERY + 1
END = 2
PARAMETERS = 20_000
ROWS = 32
LEARNED, CHECK = 0.99, 50  # a run ends when a fresh batch of 256 is answered so well, looked at every so many steps


@dataclass(frozen=True)
class Case:
    """A family as it is compared: its settings and what it needs to learn this, found by trying: the rate (Adam); for gates, fresh
    biases that keep for about half the lag (LSTM: for the lag) where the usual ones forget in two tokens."""

    family: str
    settings: dict[str, Any]
    rate: float
    keeps: float | None = None  # the setting `memory`, as a share of the lag
    turns: bool = False  # the value and what follows it are a turn, which ends just before the query


CASES = {
    "rnn": Case("rnn", {"layers": 1}, 1e-3),
    "lstm": Case("lstm", {"layers": 1}, 1e-2, keeps=1.0),
    "gru": Case("gru", {"layers": 1}, 1e-2, keeps=0.5),
    "gpt": Case("gpt", {"layers": 2}, 3e-3),
    "convolution": Case("convolution", {"layers": 6}, 3e-3),
    "memory_network": Case("memory_network", {"hops": 3}, 3e-3),
    "encoder_decoder": Case("encoder_decoder", {"layers": 1}, 3e-3, turns=True),
    "seq2seq": Case("seq2seq", {"layers": 1}, 3e-3, turns=True),
    "seq2seq, no attention": Case("seq2seq", {"layers": 1, "attention": False}, 3e-3, turns=True),
}


@dataclass(frozen=True)
class Outcome:
    """One training: the share of 1024 fresh sequences that were answered right at its end."""

    case: str
    lag: int
    seed: int
    accuracy: float
    steps: int
    seconds: float
    parameters: int


def sequences(rows: int, lag: int, turns: bool, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rows, lag + 1) ids that begin with the value and end with the query, and (rows,) the value's id."""
    value = torch.randint(FIRST, FIRST + VALUES, (rows, 1), generator=random)
    others = torch.randint(FIRST + VALUES, QUERY, (rows, lag - 1), generator=random)
    if turns:
        others[:, -1] = END
    return torch.cat([value, others, torch.full((rows, 1), QUERY)], 1), value[:, 0]


def built(case: Case, lag: int, seed: int) -> LanguageModel:
    """The case's family at the common number of parameters, fresh."""
    part = kind("families").load(case.family)
    memory = {} if case.keeps is None else {"memory": max(2.0, case.keeps * lag)}
    family: Family = part(**{**case.settings, **memory, "context": max(128, lag + 8)})
    return family.sized(PARAMETERS, VOCABULARY).build(VOCABULARY, seed)


def trained(name: str, lag: int, seed: int, steps: int) -> tuple[LanguageModel, Outcome]:
    """Train one case at one lag until it answers, or for `steps` updates of 32 sequences."""
    case, began = CASES[name], time.perf_counter()
    model = built(case, lag, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=case.rate)
    random = torch.Generator().manual_seed(derived(seed, "lags", lag))
    step, learned = 0, False
    while step < steps and not learned:
        for group in optimizer.param_groups:
            group["lr"] = case.rate * min(1.0, (step + 1) / 50)
        ids, value = sequences(ROWS, lag, case.turns, random)
        loss = torch.nn.functional.cross_entropy(model.head(model.hidden(ids)[:, -1]), value)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % CHECK == 0:
            learned = accuracy(model, case, lag, 256, derived(seed, "check", step)) >= LEARNED
    right = accuracy(model, case, lag, 1024, derived(seed, "test"))
    count = sum(weight.numel() for weight in model.parameters())
    return model, Outcome(name, lag, seed, right, step, time.perf_counter() - began, count)


@torch.no_grad()
def accuracy(model: LanguageModel, case: Case, lag: int, rows: int, seed: int) -> float:
    """Share of fresh sequences whose value is the likeliest of all values."""
    ids, value = sequences(rows, lag, case.turns, torch.Generator().manual_seed(seed))
    logits = model.eval().head(model.hidden(ids)[:, -1])
    model.train()
    return float((logits[:, FIRST : FIRST + VALUES].argmax(1) + FIRST == value).float().mean())


def gradients_by_lag(model: LanguageModel, length: int, seed: int) -> list[float]:
    """For each lag from 0: the root mean square of ∂(loss at the last token)/∂(embedding of the token so far back), over 64 rows,
    as a share of that at lag 0."""
    ids, value = sequences(64, length, False, torch.Generator().manual_seed(derived(seed, "gradients")))
    seen: list[Tensor] = []

    def keep(_: torch.nn.Module, __: Any, embedded: Tensor) -> Tensor:
        seen.append(embedded.detach().requires_grad_())
        return seen[-1]

    handle = model.get_submodule("embedding").register_forward_hook(keep)
    torch.nn.functional.cross_entropy(model.head(model.hidden(ids)[:, -1]), value).backward()
    handle.remove()
    assert seen[0].grad is not None
    # The embeddings stand token after token: all first ones, all second ones, … (`Sequences`).
    size = seen[0].grad.view(ids.shape[1], len(ids), -1).square().mean((1, 2)).sqrt().flip(0)
    return (size / size[0]).tolist()


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and the half width of its 95 % interval over seeds (Student's t)."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, math.nan
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    student = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}.get(count, 2.2)
    return mean, student * spread / math.sqrt(count)


def outcomes(names: list[str], lags: list[int], seeds: int, steps: int, workers: int) -> Iterator[Outcome]:
    """Every case at every lag and seed, the longest first, as they end."""
    with ProcessPoolExecutor(workers, initializer=prepare) as pool:
        tasks = [(name, lag, seed) for lag in sorted(lags, reverse=True) for name in names for seed in range(seeds)]
        jobs = [pool.submit(_outcome, *task, steps) for task in tasks]
        for job in as_completed(jobs):
            yield job.result()


def prepare() -> None:
    """One thread, and no denormal numbers: a gradient that vanishes passes through them, ten times more slowly than any other."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _outcome(name: str, lag: int, seed: int, steps: int) -> Outcome:
    return trained(name, lag, seed, steps)[1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--families", nargs="+", default=list(CASES), choices=list(CASES))
    options.add_argument("--lags", nargs="+", type=int, default=[10, 20, 50, 100])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--json", action="store_true", help="one JSON object a training")
    options.add_argument("--gradients", action="store_true", help="gradient against lag, fresh and trained")
    asked = options.parse_args()
    if asked.gradients:
        print_gradients(asked.json)
        return
    found: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes(asked.families, asked.lags, asked.seeds, asked.steps, asked.workers):
        found.setdefault((outcome.case, outcome.lag), []).append(outcome)
        if asked.json:
            print(json.dumps(asdict(outcome)), flush=True)
    if asked.json:
        return
    print(f"share answered right, mean ± 95 % over {asked.seeds} seeds (chance {1 / VALUES:.3f}); in brackets the median of updates")
    print(f"{'family':24}{'parameters':>10}" + "".join(f"{f'lag {lag}':>22}" for lag in asked.lags))
    for name in asked.families:
        cells = []
        for lag in asked.lags:
            mean, half = interval([outcome.accuracy for outcome in found[name, lag]])
            steps = sorted(outcome.steps for outcome in found[name, lag])[asked.seeds // 2]
            cells.append(f"{mean:.3f} ± {half:.3f} ({steps})")
        print(f"{name:24}{found[name, asked.lags[0]][0].parameters:>10,}" + "".join(f"{cell:>22}" for cell in cells))


def print_gradients(as_json: bool) -> None:
    """Recurrent models before and after 300 updates at lag 100, at lags up to 100."""
    prepare()
    marks = [1, 5, 10, 20, 50, 100]
    if not as_json:
        print("gradient that reaches a token so many steps back, as a share of the last token's")
        print(f"{'family':24}" + "".join(f"{f'lag {lag}':>12}" for lag in marks))
    for name in ("rnn", "lstm", "gru"):
        for state in ("fresh", "trained"):
            model = built(CASES[name], 100, 0) if state == "fresh" else trained(name, 100, 0, 300)[0]
            shares = gradients_by_lag(model, 100, 0)
            if as_json:
                print(json.dumps({"family": name, "state": state, "shares": shares}))
            else:
                print(f"{f'{name}, {state}':24}" + "".join(f"{shares[lag]:12.2e}" for lag in marks))


if __name__ == "__main__":
    main()
