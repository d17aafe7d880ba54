"""Models that other programs made: a Hugging Face directory or a GGUF file becomes a `LanguageModel`. No code of theirs runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chattune.core import files
from chattune.core.errors import ArtifactError
from chattune.core.gguf import is_gguf

if TYPE_CHECKING:
    from chattune.models.families import Family
    from chattune.models.language_model import LanguageModel
    from chattune.models.stored import Description


def read_foreign(path: Path) -> tuple[LanguageModel, Description]:
    """The model at `path` with its weights as they are, in float32 on the CPU, and what was found there.

    `ArtifactError` where it is of a kind that no family covers, `CorruptError` with all that contradicts itself.
    """
    path = Path(path)
    if path.is_dir():
        from chattune.models.checkpoint import read_directory

        with files.telling_damage(path, "a Hugging Face directory that is whole"):
            return read_directory(path)
    if path.is_file() and is_gguf(path):
        from chattune.models.gguf import read_gguf_model

        with files.telling_damage(path, "a GGUF file that is whole"):
            return read_gguf_model(path)
    raise ArtifactError(
        "is neither a Hugging Face directory nor a GGUF file." if path.exists() else "does not exist.", path=str(path),
        rule="a directory with config.json and safetensors, or a GGUF file",
    )


def described(path: Path) -> tuple[Family, int]:
    """The family and the vocabulary of the model at `path`, without reading its weights."""
    path = Path(path)
    if path.is_dir():
        from chattune.models import checkpoint

        return checkpoint.described(path)
    from chattune.core.gguf import read_gguf
    from chattune.models import gguf

    family, vocabulary, *_ = gguf.described(read_gguf(path))
    return family, vocabulary
