"""Where a pretrained model lies: a Hugging Face directory, a GGUF file, or an installed Python package with one. Nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from chattune.core import files
from chattune.core.errors import ArtifactError, UnknownName, did_you_mean
from chattune.core.gguf import is_gguf

CONFIG = "config.json"
# What is read of a Hugging Face directory; all else in it, code above all, is not.
_READ = (
    CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "merges.txt", "model.safetensors.index.json", "README.md",
)  # fmt: skip
_WEIGHTS = (".safetensors", ".gguf")
_PATH = "import.path"
_ADAPTER = "It is an adapter: merge it into its model, and give that model's directory of safetensors."


@dataclass(frozen=True)
class Source:
    """A model on disk: `path` is a GGUF file or a Hugging Face directory; `package` the Python package that shipped it."""

    path: Path
    gguf: bool
    package: str | None = None

    def files(self) -> list[Path]:
        """Every file that is read."""
        if self.gguf:
            return [self.path]
        found = [file for file in sorted(self.path.iterdir()) if file.name in _READ or file.suffix == ".safetensors"]
        return [file for file in found if file.is_file()]

    def license(self) -> str | None:
        """What the model card, the GGUF file or the package says of its license, as the short word that it uses."""
        if self.package is not None:
            found = metadata.metadata(self.package)
            said = [str(found[key]) for key in ("License-Expression", "License") if key in found]
            if said and len(said[0]) < 80:
                return said[0]
        if self.gguf:
            from chattune.core.gguf import read_gguf

            value = read_gguf(self.path).metadata.get("general.license")
        else:
            value = _front_matter(self.path / "README.md").get("license")
        return value if isinstance(value, str) and 0 < len(value) < 80 else None


def located(reference: str) -> Source:
    """The model that `reference` means, or an error that says what is there instead."""
    path = Path(reference)
    if path.is_dir():
        return _in(path, None)
    if path.is_file():
        if is_gguf(path):
            return Source(path, gguf=True)
        raise ArtifactError(
            "is no GGUF file.", path=f"{_PATH}: {path}", value=reference,
            rule="a Hugging Face directory, a GGUF file or a Python package",
            hint="Give the directory that the file lies in." if path.suffix in (".safetensors", ".json") else None,
        )
    try:
        shipped = metadata.files(reference) if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", reference) else None
    except metadata.PackageNotFoundError:
        shipped = None
    if shipped is None:
        installed = {str(found.name) for found in metadata.distributions() if found.metadata and found.name}
        near = did_you_mean(reference, installed)
        raise UnknownName(
            f"there is neither a file nor a folder nor a Python package called '{reference}'.", path=_PATH, value=reference,
            rule="a Hugging Face directory, a GGUF file or a Python package",
            hint=near if near.startswith("Did") else "chattune downloads nothing: bring the model to this machine first.",
        )
    return _of_package(reference, [Path(str(file.locate())) for file in shipped])


def _of_package(name: str, shipped: Iterable[Path]) -> Source:
    shipped = list(shipped)
    found = [file for file in shipped if file.suffix == ".gguf"] or [file.parent for file in shipped if file.name == CONFIG]
    if len(found) == 1:
        return Source(found[0], True, name) if found[0].suffix == ".gguf" else _in(found[0], name)
    raise ArtifactError(
        f"the Python package '{name}' ships {'no model' if not found else f'{len(found)} models'}.", path=_PATH, value=name,
        rule="a package with one GGUF file or one Hugging Face directory", hint=_choices(found) if found else None,
    )


def _in(folder: Path, package: str | None) -> Source:
    if package is None:
        files.require_inside(folder, (file for file in sorted(folder.iterdir()) if file.name in _READ or file.suffix in _WEIGHTS))
    if (folder / CONFIG).is_file():
        return Source(folder, False, package)
    found = sorted(folder.glob("*.gguf"))
    if len(found) == 1:
        return Source(found[0], True, package)
    raise ArtifactError(
        f"holds {len(found)} GGUF files." if found else f"holds neither {CONFIG} nor a GGUF file.", path=f"{_PATH}: {folder}",
        value=str(folder), rule="a Hugging Face directory with safetensors, or one GGUF file",
        hint=_choices(found) if found else _ADAPTER if (folder / "adapter_config.json").exists() else None,
    )


def _choices(found: Iterable[Path]) -> str:
    return f"Name one of {', '.join(str(path) for path in sorted(found)[:6])}."


def _front_matter(card: Path) -> dict[str, Any]:
    """The settings between the dashes at the top of a model card."""
    import yaml

    if not card.is_file() or card.stat().st_size > 1 << 22:
        return {}
    match = re.match(r"---\s*\n(.{0,65536}?)\n---\s*\n", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Path → sha256 of each file."""
    return {str(path): files.digest_of(path) for path in paths}
