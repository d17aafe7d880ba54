"""A checkpoint for other programs: a Hugging Face directory, or a GGUF file for llama.cpp."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from chattune.core import files
from chattune.core.errors import ArtifactError
from chattune.models.checkpoint import CARD, CONFIG, Checkpoint
from chattune.models.stored import WEIGHTS
from chattune.tokens.control import GENERATION, TOKENIZER_FILES


def to_hugging_face(checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
    """Copy what transformers reads to the new directory `out`; gives ``path``, ``bytes`` and ``notes``."""
    from chattune.models.adapters._files import FOLDER

    config = files.read_json(checkpoint.path / CONFIG)
    if "model_type" not in config:
        family = config["chattune"]["family"]["name"]
        raise ArtifactError(
            f"is of the family '{family}', which no other library computes.", path=str(checkpoint.path), value=family,
            rule="a model of the family gpt or hf", hint="Serve it with chattune, or train a gpt.",
        )
    notes = []
    if checkpoint.adapter is not None:
        own = "chattune" if checkpoint.adapter.name == "bottleneck" else "peft"
        notes.append(f"its {checkpoint.adapter.name} adapter stands beside the weights, which are without it; {own} puts it on")
    names = [WEIGHTS, CONFIG, GENERATION, *TOKENIZER_FILES, CARD]
    with files.new_directory(out) as folder:
        for name in names:
            shutil.copyfile(checkpoint.path / name, folder / name)
        if (checkpoint.path / FOLDER).is_dir():
            shutil.copytree(checkpoint.path / FOLDER, folder / FOLDER)
    return {"path": str(out), "bytes": _size(out), "notes": notes}


def to_gguf(checkpoint: Checkpoint, out: Path, kind: str) -> dict[str, Any]:
    """Write one file of numbers of the `kind` (f32, f16, bf16, q8_0); gives ``path``, ``bytes`` and ``notes``."""
    from chattune.models.gguf import Type, write_gguf

    if checkpoint.adapter is not None:
        raise ArtifactError(
            f"has a {checkpoint.adapter.name} adapter beside its weights, for which GGUF has no place.", path=str(checkpoint.path),
            value=checkpoint.adapter.name, rule="plain weights", hint="Train with one that merges, such as lora, or export to hf.",
        )
    kinds: dict[str, Type] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
    notes = write_gguf(checkpoint.model(), checkpoint.path, out, kinds[kind])
    return {"path": str(out), "bytes": _size(out), "notes": notes}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
