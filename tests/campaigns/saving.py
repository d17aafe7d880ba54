"""A process that only saves checkpoints: ``python saving.py FOLDER STEPS [--warn] [--in-place]``; prints ``saved N`` after each.

`--in-place` writes them as one should not, straight to their place: the positive control
that shows the campaigns see what they look for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from chattune.train import state as train_state
from chattune.train.state import Snapshots

TENSORS = 6


def tensors(step: int, numbers: int = 4000) -> dict[str, torch.Tensor]:
    """Weights that say which step they are of, so that a mixture of two checkpoints would show."""
    return {f"layer.{n}.weight": torch.full((numbers,), float(step * 100 + n)) for n in range(TENSORS)}


def whole(snapshot: train_state.Snapshot) -> bool:
    """Every part of it is of its own step."""
    expected = tensors(snapshot.step)
    return (
        snapshot.state == {"step": snapshot.step}
        and snapshot.model.keys() == expected.keys()
        and all(bool((snapshot.model[name] == value[0]).all()) for name, value in expected.items())
        and bool((snapshot.optimizer["state"][0]["momentum_buffer"] == float(snapshot.step)).all())
    )


def optimizer(step: int) -> dict[str, Any]:
    """As much of an optimizer's state as a checkpoint asks for; real ones take seconds to import, in every process of a campaign."""
    buffer = torch.full((4000,), float(step))
    return {"state": {0: {"momentum_buffer": buffer}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


class InPlace(Snapshots):
    """The mistake: files go straight to their place, the manifest last, nothing is synced."""

    def _write(self, path: Path, step: int, model: Any, optimizer: Any, state: Any, memories: Any) -> None:
        path.mkdir(parents=True, exist_ok=True)
        held: dict[str, torch.Tensor] = {}
        trainer = {"step": step, "state": state, "optimizer": train_state._lower(optimizer, "", held)}
        listed = {"trainer_state.json": train_state._put(path / "trainer_state.json", json.dumps(trainer).encode())}
        for name, tensors in (("model.safetensors", model), ("optimizer.safetensors", held)):
            listed[name] = train_state._put(path / name, train_state._packed(tensors))
        train_state._put(path / "MANIFEST.json", train_state._manifest({"schema": 1, "step": step, **self.belongs, "files": listed}))


def main(arguments: list[str]) -> None:
    folder, count = Path(arguments[0]), int(arguments[1])
    kind = InPlace if "--in-place" in arguments else Snapshots
    snapshots = kind(folder, on_save_error="warn" if "--warn" in arguments else "stop")
    found = snapshots.load()
    first = found.step + 1 if found else 1
    print("ready", flush=True)
    for step in range(first, first + count):
        path = snapshots.save(step, tensors(step), optimizer(step), {"step": step})
        print(f"saved {step}" if path else f"failed {step}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
