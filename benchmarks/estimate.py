"""What `--dry-run` says beside what the training then takes: time, memory and disk of five configurations (U4: within 25 %).

    python benchmarks/estimate.py            # about 8 minutes on two cores

Both are programs of their own. The disk is what the run directory held at its largest, looked at five times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

CONFIGURATIONS = {
    "gpt micro": ("model.size=micro", "train.steps=150"),
    "gpt tiny, large batch": ("model.size=tiny", "train.batch_tokens=8192", "train.accumulate=2", "train.steps=15"),
    "lstm 1.3M": ("model.name=lstm", "model.parameters=1.3M", "train.steps=100"),
    "encoder_decoder micro, adamw": ("model.name=encoder_decoder", "model.size=micro", "train.optimizer=adamw", "train.steps=80"),
    "memory_network micro, 2 epochs": ("model.name=memory_network", "model.size=micro", "train.epochs=2"),
}  # fmt: skip
PROGRAM = (sys.executable, "-c", "import sys; from chattune.cli import main; sys.exit(main())")


def program(home: Path, *words: str) -> tuple[dict[str, Any], float]:
    """What chattune prints as JSON, and the peak memory of its process in bytes."""
    with subprocess.Popen([*PROGRAM, *words, "--home", str(home), "--json", "--quiet"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        text = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"chattune {' '.join(words)} ended with {child.returncode}")
    return json.loads(text.splitlines()[-1]), used.ru_maxrss * 1024.0


class Largest:
    """Bytes under the training runs of `home` at their largest, looked at from a thread of its own."""

    def __init__(self, home: Path, apart: set[str]) -> None:
        self.home, self.apart, self.bytes, self.over = home, apart, 0, threading.Event()
        self.thread = threading.Thread(target=self._look)

    def __enter__(self) -> Largest:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.over.wait(0.2):
            total = 0
            for run in self.home.glob("train-*"):
                for file in run.rglob("*") if run.name not in self.apart else ():
                    try:
                        total += file.stat().st_size
                    except FileNotFoundError:
                        continue  # an old checkpoint that went just now
            self.bytes = max(self.bytes, total)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--source", default="chatterbot-english", help="what is learned from")
    options.add_argument("--only", nargs="+", metavar="WORD", help="configurations whose name holds one of these")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "runs"
        program(home, "collect", chosen.source, "--name", "dialogs")
        program(home, "prepare", "dialogs", "prepare.vocabulary_at_most=2048", "--name", "tokens")
        for name, settings in CONFIGURATIONS.items():
            if chosen.only and not any(word in name for word in chosen.only):
                continue
            words = ("train", "tokens", *settings, "train.precision=float32", "train.compile=off", "train.evaluations=4")
            told, _ = program(home, *words, "--dry-run")
            with Largest(home, {run.name for run in home.glob("train-*")}) as disk:
                took, memory = program(home, *words)
            trained = took["stages"]["train"]
            figures = {
                "seconds": (told["seconds"], trained["train_seconds"]), "memory": (told["memory_bytes"], memory),
                "disk": (told["disk_bytes"], disk.bytes), "parameters": (told["parameters"], trained["parameters"]),
            }  # fmt: skip
            if chosen.json:
                print(json.dumps({"bench": "estimate", "configuration": name, **figures}), flush=True)
            else:
                shares = "   ".join(f"{what} {said / found:.2f}" for what, (said, found) in figures.items())
                print(f"{name:32} said / took:   {shares}", flush=True)


if __name__ == "__main__":
    main()
