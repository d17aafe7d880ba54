"""Raw logs to splits at size: peak memory, dialogs and megabytes a second, the share of each step, and what a changed late step redoes.

A synthetic file of short support conversations (OpenAI messages, one a line; a tenth say what another says, a twentieth nearly) goes
through `chattune collect`: reading, cleaning, dividing. Then once more with another share for the test, which must not read again.

    .venv/bin/python benchmarks/data_scale.py [--json] [--dialogs 2000000] [--cleaners text_repair control_codes] [--folder DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT = 1.5  # GiB


def write(path: Path, count: int) -> int:
    """The file; its bytes. Words are drawn from 40,000 by Zipf's law, so that texts are as different as real ones."""
    random.seed(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(random.choices(letters, k=random.randint(2, 10))) for _ in range(40_000)]
    shares = [1 / (rank + 10) for rank in range(len(words))]
    drawn: list[str] = []
    place = 0

    def said(least: int, most: int) -> str:
        nonlocal drawn, place
        length = random.randint(least, most)
        if len(drawn) - place < length:
            drawn, place = random.choices(words, shares, k=100_000), 0
        place += length
        return " ".join(drawn[place - length : place])

    last: list[dict[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            kind = random.random()
            if kind < 0.10 and last:
                talk = last
            elif kind < 0.15 and last:
                asked = {"role": "user", "content": last[0]["content"] + "!"}
                talk = [asked, *last[1:-1], {"role": "assistant", "content": said(5, 25)}]
            else:
                turns = random.choice((2, 2, 4))
                talk = [{"role": ("user", "assistant")[turn % 2], "content": said(5, 25)} for turn in range(turns)]
            last = talk
            file.write(json.dumps({"id": f"talk-{number}", "messages": talk}) + "\n")
    return path.stat().st_size


def family(process: int) -> Iterator[int]:
    """A process and all that it started."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield from family(int(child))


def held(process: int) -> float:
    """Memory of a process and all that it started, what they share counted once (GiB)."""
    found = 0
    for member in family(process):
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{member}/smaps_rollup").read_text()
            found += int(told.partition("Pss:")[2].split()[0])
    return found / 2**20


def collect(source: Path, home: Path, *settings: str) -> dict[str, Any]:
    """What `chattune collect` made: seconds of each stage, which were found, and the peak memory of all its processes (GiB)."""
    command = [sys.executable, "-m", "chattune", "collect", str(source), *settings, "--home", str(home), "--json"]
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as talk:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, text=True)
        assert child.stdout is not None
        memory = [0.0]
        watching = threading.Thread(target=watch, args=(child.pid, memory), daemon=True)
        watching.start()
        with child.stdout:
            answer = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        talk.seek(0)
        said = talk.read()
    if child.returncode:
        sys.exit(f"chattune collect ended with {child.returncode}:\n{said}")
    told = json.loads(answer.splitlines()[-1])
    return {
        "seconds": told["seconds"], "wall": time.perf_counter() - began, "counts": told["counts"], "split": told["split"],
        "memory": max(usage.ru_maxrss / 2**20, *memory),
        "reused": [line.split()[0] for line in said.splitlines() if " reused " in line],
    }  # fmt: skip


def watch(process: int, memory: list[float]) -> None:
    """Note what it and its children hold, twice a second, until it ends."""
    while Path(f"/proc/{process}/smaps_rollup").exists():
        with contextlib.suppress(OSError, IndexError):
            memory.append(held(process))
        time.sleep(0.5)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--dialogs", type=int, default=2_000_000)
    options.add_argument("--cleaners", nargs="*", default=[], metavar="CLEANER", help="that clean between reading and dividing")
    options.add_argument("--folder", type=Path, default=None, help="where the file and the runs are kept; none: a temporary folder")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / f"talks-{chosen.dialogs}.jsonl"
        size = source.stat().st_size if source.exists() else write(source, chosen.dialogs)
        cleaners = [f"clean.cleaners=[{','.join(chosen.cleaners)}]"] if chosen.cleaners else []
        first = collect(source, folder / "runs", *cleaners)
        again = collect(source, folder / "runs", *cleaners, "split.shares=[0.7,0.1,0.2]")
    counts = first["counts"]
    assert counts["read"] == chosen.dialogs == counts["kept"] + sum(counts["dropped"].values())
    steps = {name: seconds for name, seconds in first["seconds"].items() if name != "total"}
    if chosen.json:
        found = {
            "bench": "data_scale", "peer": "its bound on memory", "ratio": LIMIT / first["memory"], "bar": 1.0, "moonshot": None,
            "ours": first["memory"], "theirs": LIMIT, "unit": "GiB", "dialogs": chosen.dialogs, "bytes": size,
            "dialogs_per_second": chosen.dialogs / first["wall"], "seconds": steps, "again": again["seconds"],
            "reused": again["reused"],
        }  # fmt: skip
        print(json.dumps(found))
        return
    rate, mega = chosen.dialogs / first["wall"], size / 1e6
    print(f"{chosen.dialogs:,} dialogs, {mega:,.0f} MB: {first['wall']:.0f} s, {rate:,.0f} dialogs/s, {mega / first['wall']:.1f} MB/s")
    print(f"at most {first['memory']:.2f} GiB (bound {LIMIT} GiB)")
    for name, seconds in steps.items():
        print(f"  {name:8} {seconds:8.1f} s  {seconds / sum(steps.values()):5.1%}")
    left = first["split"]
    print(f"kept {counts['kept']:,}, dropped {counts['dropped']}")
    print(f"test questions in training: {left['exact_overlap']:.2%} exactly, {left['near_duplicate_share']:.2%} nearly")
    print(f"with other shares: {again['wall']:.0f} s, at most {again['memory']:.2f} GiB; found again: {', '.join(again['reused'])}")


if __name__ == "__main__":
    main()
