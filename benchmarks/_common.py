"""What every benchmark shares: peers in processes of their own, in turn; a table row a line, or a JSON object with ``--json``."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

PATIENCE = 60.0  # seconds of updates after which a peer starts no further one; one at least is timed
MISSING = 3  # exit status of a peer whose package is not installed


@dataclass(frozen=True)
class Line:
    """One comparison: `ours` and `theirs` in `unit`, measured in one run on the same work; `ratio` above 1 means ours is better."""

    bench: str
    peer: str
    ratio: float
    bar: float | None
    moonshot: float | None
    ours: float
    theirs: float
    unit: str


@dataclass(frozen=True)
class Measured:
    """What one peer did in one process: `work` in each of `seconds`, and the process' peak memory in GiB."""

    work: list[float]
    seconds: list[float]
    memory: float


def parser(description: str, peers: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark takes; `peers`: it measures them by `in_turn`."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--rounds", type=int, default=3, help="rounds over all peers; medians are quoted")
    options.add_argument("--threads", type=int, help="processor threads of every peer; none: one a core")
    if not peers:
        return options
    options.add_argument("--peers", nargs="+", metavar="PEER", help="only these, by their names or the beginning of them")
    options.add_argument("--peer", help=argparse.SUPPRESS)  # a child process measures this one
    return options


def say(line: Line, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """`more`: what stands beside the comparison in its JSON object."""
    if as_json:
        print(json.dumps({**asdict(line), **(more or {})}), flush=True)
        return
    bars = [f"{name} {value:g}×" for name, value in (("bar", line.bar), ("moonshot", line.moonshot)) if value is not None]
    digits = 0 if min(line.ours, line.theirs) >= 100 else 3
    figures = f"{line.ratio:6.2f}×   {line.ours:,.{digits}f} against {line.theirs:,.{digits}f} {line.unit}"
    print(f"{line.bench:44} {line.peer:40} {figures}   {', '.join(bars)}", flush=True)


def measured(work: Iterable[float], seconds: Iterable[float]) -> Measured:
    """What this process did so far, with its own peak."""
    return Measured(list(work), list(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def timed(step: Callable[[], float], steps: int, warmup: int) -> Measured:
    """`step` run `warmup` + `steps` times, or fewer (see `enough`); it gives the work that it did."""
    work, seconds = [], []
    for _ in range(steps + warmup):
        began = time.perf_counter()
        work.append(float(step()))
        seconds.append(time.perf_counter() - began)
        if enough(seconds, warmup):
            break
    return measured(work[warmup:], seconds[warmup:])


def enough(seconds: list[float], warmup: int) -> bool:
    """True when an update was timed after `warmup` others and all together took longer than anybody should wait for a slow peer."""
    return len(seconds) > warmup and sum(seconds) > PATIENCE


def in_turn(
    peers: dict[str, Callable[[], Measured]], chosen: argparse.Namespace, python: dict[str, str] | None = None
) -> dict[str, list[Measured]]:
    """Each peer in a process of its own, `rounds` times in turn, so that a slow moment of the machine hits all of them alike.

    `python`: another interpreter for peers by the beginning of their names. In a child this measures the one peer that it is
    for and ends. Peers whose package is missing are named once, with the way to install it, and left out.
    """
    if chosen.threads:
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    if chosen.peer:
        import torch

        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        try:
            print(json.dumps(asdict(peers[chosen.peer]())))
        except ImportError as error:
            print(f"{chosen.peer}: {error}. Install it with: pip install -c constraints.txt {error.name}", file=sys.stderr)
            sys.exit(MISSING)
        sys.exit(0)
    wanted = [name for name in peers if not chosen.peers or any(_means(start, name, peers) for start in chosen.peers)]
    found: dict[str, list[Measured]] = {name: [] for name in wanted}
    for round in range(chosen.rounds):
        for name in list(found):
            own = next((path for start, path in (python or {}).items() if name.startswith(start)), sys.executable)
            child = subprocess.run([own, *sys.argv, "--peer", name], capture_output=True, text=True)
            if child.returncode == MISSING:
                print(child.stderr.strip().splitlines()[-1], file=sys.stderr)
                del found[name]
            elif child.returncode:
                sys.exit(f"{name} failed:\n{child.stderr}")
            else:
                for remark in (line for line in child.stderr.splitlines() if line.startswith("# ") and not round):
                    print(remark, file=sys.stderr)
                one = Measured(**json.loads(child.stdout.strip().splitlines()[-1]))
                found[name].append(one)
                print(f"# round {round + 1}, {name}: {rate([one]):,.0f}/s, {one.memory:.2f} GiB", file=sys.stderr)
    return found


def _means(said: str, name: str, peers: Iterable[str]) -> bool:
    """A whole name means that peer alone; else all peers that begin so."""
    return name == said if said in peers else name.startswith(said)


def rate(found: list[Measured]) -> float:
    """Work a second: where every step does the same work, by the median step; else all work over all time."""
    work = [done for run in found for done in run.work]
    seconds = [second for run in found for second in run.seconds]
    return work[0] / statistics.median(seconds) if len(set(work)) == 1 else sum(work) / sum(seconds)


def memory(found: list[Measured]) -> float:
    """GiB at the peak, median over rounds."""
    return statistics.median(run.memory for run in found)


Bars = dict[str, tuple[float | None, float | None]]  # peer → what must be reached, and the moonshot


def compare(bench: str, ours: str, found: dict[str, list[Measured]], bars: Bars, unit: str, as_json: bool) -> None:
    """A line for each peer that is not ours."""
    for name, runs in found.items():
        if not name.startswith("chattune") and found.get(ours):
            bar, moonshot = bars.get(name, (None, None))
            mine, theirs = rate(found[ours]), rate(runs)
            say(Line(f"{bench}, {ours}", name, mine / theirs, bar, moonshot, mine, theirs, unit), as_json)


def fixed(values: Any) -> Any:
    """An endless source of batches that a `Training` reads in order, again and again: `values` are Batches."""

    class Fixed:
        index = 0

        def next(self) -> Any:
            self.index += 1
            return values[(self.index - 1) % len(values)]

        def state_dict(self) -> dict[str, int]:
            return {"epoch": 0, "index": self.index}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.index = state["index"]

    return Fixed()


def step_clock(times: list[float], warmup: int) -> Any:
    """A callback of Hugging Face Trainer that adds the seconds of each update to `times`, and stops it when that is `enough`."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> Any:
            times.append(time.perf_counter() - self.began)
            control.should_training_stop |= enough(times, warmup)
            return control

    return Clock()
