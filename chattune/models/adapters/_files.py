"""An adapter's folder: ``adapter_model.safetensors`` and ``adapter_config.json``, in peft's format where peft has an equivalent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError
from chattune.models.adapters import Adapter

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

FOLDER, WEIGHTS, CONFIG = "adapter", "adapter_model.safetensors", "adapter_config.json"


def write_adapter(adapter: Adapter, model: LanguageModel, folder: Path) -> None:
    """Write what `adapter` learned in `model` to `folder`, to be read by peft, or by `read_adapter` with the same settings."""
    tensors, config = adapter.exported(model)
    plain = {name: tensor.detach().to("cpu").clone() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files.require_space(folder / WEIGHTS, sum(tensor.nbytes for tensor in plain.values()))
    temporary = folder / f".{WEIGHTS}.new"
    try:
        with files.telling_space(folder / WEIGHTS):
            save_file(plain, temporary, metadata={"format": "pt"})
            files.sync(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, folder / WEIGHTS)
    finally:
        temporary.unlink(missing_ok=True)
    files.write_json(folder / CONFIG, config)


def read_adapter(adapter: Adapter, model: LanguageModel, folder: Path) -> None:
    """Attach `adapter` to `model` with what `folder` holds. `CorruptError` names what does not fit."""
    if not (folder / WEIGHTS).is_file():
        raise ArtifactError("is missing.", path=str(folder / WEIGHTS), rule="the adapter that config.json names")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CorruptError(f"is not a safetensors file: {error}.", path=str(folder / WEIGHTS), rule="valid safetensors") from None
    adapter.attach(model)
    try:
        adapter.load_exported(model, tensors)
    except CorruptError as error:
        raise CorruptError(error.message, path=str(folder / WEIGHTS), value=error.value, rule=error.rule) from None
