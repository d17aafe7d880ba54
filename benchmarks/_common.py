"""What every benchmark shares: one JSON object a line with ``--json``, a table row otherwise."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass


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


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--rounds", type=int, default=3, help="rounds over all peers; medians are quoted")
    return options


def say(line: Line, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(line)), flush=True)
        return
    bars = [f"{name} {value:g}×" for name, value in (("bar", line.bar), ("moonshot", line.moonshot)) if value is not None]
    figures = f"{line.ratio:6.2f}×   {line.ours:,.0f} against {line.theirs:,.0f} {line.unit}"
    print(f"{line.bench:28} {line.peer:34} {figures}   {', '.join(bars)}", flush=True)
