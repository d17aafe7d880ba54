"""Datasets of Hugging Face as files of rows: by name through the package `datasets`, or a folder that it saved. Never their code.

``hf:NAME?split=train&config=en`` names a dataset, a folder or a file; without a split all of them are read, in their order. What the
package loads it keeps as Arrow files in its own cache; those are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from chattune.core.errors import ChattuneError, DataError, did_you_mean
from chattune.dialogs.column_files import needed

PREFIX = "hf:"
_CHOICES = ("split", "config", "revision")
_VERSION = 4  # from this version of `datasets` on no code of a dataset is run


@dataclass(frozen=True)
class HubSource:
    """What ``hf:NAME?split=…&config=…&revision=…`` says."""

    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None

    @classmethod
    def read(cls, source: str) -> HubSource:
        """The parts of a source; a `DataError` for one that says something else."""
        name, _, query = source.removeprefix(PREFIX).partition("?")
        said = dict(parse_qsl(query, keep_blank_values=True))
        for key, value in said.items():
            if key not in _CHOICES:
                rule = f"only {', '.join(_CHOICES)} behind the question mark"
                raise _mistake(source, f"says '{key}'.", rule, did_you_mean(key, _CHOICES))
            if not re.fullmatch(r"\w[\w.-]*", value) and key != "revision":
                raise _mistake(source, f"has a {key} of '{value}'.", f"a {key}'s plain name", "Choose parts of it afterwards.")
        if not name.strip():
            raise _mistake(source, "names no dataset.", "hf:NAME", "Such as hf:OWNER/DATASET?split=train.")
        return cls(name.strip(), said.get("split"), said.get("config"), said.get("revision"))


def hub_files(source: str) -> Iterator[tuple[Path, str]]:
    """The files of the dataset that `source` names, with the names under which they are shown."""
    wanted = HubSource.read(source)
    local = Path(wanted.name).expanduser()
    if local.exists():
        yield from _local(local, wanted, source)
        return
    for split, table in _loaded(wanted, source):
        found = [Path(item["filename"]) for item in table.cache_files]
        if not found:
            raise _mistake(source, "is not kept as files by the package datasets.", "a dataset on disk", "Save it with save_to_disk.")
        config = f"&config={wanted.config}" if wanted.config else ""
        shown = f"{PREFIX}{wanted.name}?split={split}{config}"
        yield from ((path, shown if len(found) == 1 else f"{shown}#{number}") for number, path in enumerate(found, 1))


def saved(folder: Path) -> dict[str, list[Path]] | None:
    """The Arrow files of a folder that `save_to_disk` wrote, by split ("" where it knows none); none for every other folder."""
    splits = _json(folder / "dataset_dict.json")
    if isinstance(splits, Mapping) and isinstance(splits.get("splits"), list):
        parts = {str(name): saved(folder / str(name)) for name in splits["splits"]}
        return {name: files for name, own in parts.items() for files in (own or {}).values()}
    state = _json(folder / "state.json")
    if not isinstance(state, Mapping) or not isinstance(state.get("_data_files"), list):
        return None
    names = [str(item.get("filename")) for item in state["_data_files"] if isinstance(item, Mapping)]
    return {"": [folder / Path(name).name for name in names]}


def _local(path: Path, wanted: HubSource, source: str) -> Iterator[tuple[Path, str]]:
    folder = path / wanted.config if wanted.config else path
    if not folder.exists():
        raise _mistake(source, f"has no folder '{wanted.config}'.", "a folder for each config", "Leave the config out.")
    kept = saved(folder) if folder.is_dir() else None
    if kept is not None:
        if wanted.split and wanted.split not in kept:
            known = ", ".join(name for name in kept if name) or "none, since it has no splits"
            raise _mistake(source, f"has no split '{wanted.split}'.", f"one of {known}", did_you_mean(wanted.split, kept))
        yield from ((file, str(file)) for name, files in kept.items() if wanted.split in (None, name) for file in files)
    elif wanted.split is None:
        yield folder, str(folder)
    else:
        mark = re.compile(rf"(?:^|[^a-z0-9]){re.escape(wanted.split.lower())}(?:[^a-z0-9]|$)")
        inside = {file: file.relative_to(folder).as_posix().lower() for file in sorted(folder.rglob("*")) if file.is_file()}
        found = [file for file, name in inside.items() if mark.search(name) and not name.startswith(".") and "/." not in name]
        if not found:
            raise _mistake(source, f"has no file of a split '{wanted.split}'.", "files named after their split", "Leave the split out.")
        yield from ((file, str(file)) for file in found)


def _loaded(wanted: HubSource, source: str) -> list[tuple[str, Any]]:
    datasets = needed("datasets", "datasets of Hugging Face")
    version = str(getattr(datasets, "__version__", "0"))
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < _VERSION:
        raise ChattuneError(
            f"datasets {version} may run code that a dataset brings.", path="collect.sources", value=version,
            rule=f"datasets from version {_VERSION} on", hint="Install a newer one: pip install -U datasets.",
        )
    try:
        found = datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, revision=wanted.revision)
    except Exception as error:  # of the network, of the hub, of the dataset: the package has no common one
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        raise _mistake(
            source, f"cannot be loaded: {said}.", "a dataset that the package datasets loads",
            "Check name, split and config, and whether the network may be used; a folder with its files can be named instead.",
        ) from None
    return list(found.items()) if isinstance(found, Mapping) else [(wanted.split or str(getattr(found, "split", "all")), found)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _mistake(source: str, message: str, rule: str, hint: str) -> DataError:
    return DataError(message, path=source, value=source, rule=rule, hint=hint or "Check collect.sources.")
