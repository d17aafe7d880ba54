"""Artifacts: finished run directories with a manifest, and the home that holds them.

A run directory without ``manifest.json`` is unfinished work. There is no "latest": a run is meant by its path, by a name
given with ``--name``, by its directory name or by a prefix of its digest.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError, UnknownName, UsageError, did_you_mean

SCHEMA = 1
MANIFEST, PLAN = "manifest.json", "plan.json"


class Artifact:
    """A finished run directory of one kind. Subclasses add what their files mean."""

    stage: ClassVar[str]
    also: ClassVar[tuple[str, ...]] = ()  # further stages that give such an artifact

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The artifact at `path`, or an `ArtifactError` that says what is there instead."""
        artifact = cls(path)
        if not (artifact.path / MANIFEST).exists():
            unfinished = (artifact.path / PLAN).exists()
            raise ArtifactError(
                "is not finished." if unfinished else "is not a run.", path=str(path), rule=f"a finished {cls.stage} run",
                hint=f"Continue it with `chattune resume {artifact.path.name}`." if unfinished else "See `chattune runs`.",
            )
        if artifact.manifest.get("schema", 0) > SCHEMA:
            raise ArtifactError(
                f"was written by a newer chattune (schema {artifact.manifest['schema']}).", path=str(path), rule=f"schema {SCHEMA}",
                hint="Upgrade chattune.",
            )
        if artifact.manifest["stage"] not in (cls.stage, *cls.also):
            raise ArtifactError(
                f"is a {artifact.manifest['stage']} run, not a {cls.stage} run.", path=str(path), value=artifact.manifest["stage"],
                rule=f"a {cls.stage} run", hint="See `chattune runs`.",
            )
        return artifact

    @cached_property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = files.read_json(self.path / MANIFEST)
        return manifest

    @property
    def digest(self) -> str:
        """What the outputs hold: sha256 over their names and digests."""
        return files.digest_of_data(self.manifest["outputs"])

    def manifests(self) -> list[dict[str, Any]]:
        """Its manifest behind those of the runs that it was made from, each once, the first inputs first."""
        found: dict[str, dict[str, Any]] = {}
        waiting = [self.path]
        while waiting:
            run = waiting.pop()
            if run.name not in found:
                found[run.name] = files.read_json(run / MANIFEST)
                waiting += [run.parent / Path(entry["run"]).name for entry in found[run.name]["inputs"].values()]
        return [*reversed(found.values())]

    def verify(self) -> None:
        """Read every output and compare it with the manifest; `CorruptError` names the first that differs."""
        for name, expected in self.manifest["outputs"].items():
            file = self.path / name
            if not file.exists():
                raise CorruptError("is missing.", path=str(file), rule="listed in manifest.json", hint="Run the stage again.")
            if file.stat().st_size != expected["size"] or files.digest_of(file) != expected["sha256"]:
                raise CorruptError(
                    "is not what was written.", path=str(file), rule="the sha256 in manifest.json",
                    hint=f"Delete {self.path} and run the stage again.",
                )


class Home:
    """The folder that holds the runs, by default ``runs``."""

    def __init__(self, path: Path | str = "runs") -> None:
        self.path = Path(path)

    def runs(self) -> list[Path]:
        """Every run directory, finished or not, oldest plan first."""
        if not self.path.is_dir():
            return []
        found = [p for p in self.path.iterdir() if (p / PLAN).exists()]
        return sorted(found, key=lambda p: ((p / PLAN).stat().st_mtime_ns, p.name))

    def names(self) -> dict[str, str]:
        """Names given with ``--name``, and the run directory that each means."""
        folder = self.path / "names"
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        return {entry.name: entry.read_text("utf-8").strip() for entry in entries if not entry.name.startswith(".")}

    def give_name(self, name: str, run: Path) -> None:
        """Let `name` mean `run` from now on."""
        check_name(name)
        (self.path / "names").mkdir(parents=True, exist_ok=True)
        files.write_atomically(self.path / "names" / name, run.name + "\n")

    def find(self, reference: str | os.PathLike[str]) -> Path:
        """The run directory that `reference` means: a path, a name, a directory name or a digest prefix."""
        text = os.fspath(reference)
        with contextlib.suppress(OSError, ValueError):  # too long for a path, or no text at all: then it is no path
            if text and (Path(text) / PLAN).exists():
                return Path(text)
        names = self.names()
        if text in names:
            run = self.path / Path(names[text]).name
            if not (run / PLAN).exists():
                raise ArtifactError(f"the run called '{text}' is gone.", path=str(run), hint="See `chattune runs`.")
            return run
        runs = self.runs()
        matches = [p for p in runs if p.name == text] or [
            p for p in runs if text and (p.name.startswith(text) or p.name.rpartition("-")[2].startswith(text))
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UnknownName(
                f"'{text}' could mean {len(matches)} runs.", value=text, rule="one run",
                hint=f"Choose one of: {', '.join(p.name for p in matches)}.",
            )
        known = [*names, *(p.name for p in runs)]
        raise UnknownName(
            f"no run is called '{text}' in {self.path}.", value=text, rule="a path, a name, or the beginning of a digest",
            hint=did_you_mean(text, known) if known else "Make one with `chattune demo`.",
        )

    def finished(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every finished run with its manifest."""
        for run in self.runs():
            if (run / MANIFEST).exists():
                yield run, files.read_json(run / MANIFEST)


def check_name(name: str) -> str:
    """`name` itself when it can name a run: letters, digits, ``.``, ``_`` and ``-``, no leading dot or dash."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(
            f"'{name}' cannot name a run.", path="--name", value=name, rule="letters, digits, '.', '_' and '-', at most 100",
            hint="Choose another name.",
        )
    return name
