"""Sources: which files a recipe means by paths, folders, globs and the words for data that comes with the installation."""

from __future__ import annotations

import glob
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from chattune.core.errors import DataError, did_you_mean

EMBEDDED = {
    "chatterbot-english": ("chatterbot_corpus", "data/english/*.yml", "chatterbot"),
    "chatterbot-chinese": ("chatterbot_corpus", "data/chinese/*.yml", "chatterbot"),
    "chitchat": ("chitchat_dataset", "dataset.json", "chitchat"),
}
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".log", ".yml", ".yaml")


@dataclass(frozen=True)
class SourceFile:
    """One file: where it is; its name in what we write, which does not depend on the machine; the source that means it; its format
    when that is known."""

    path: Path
    shown: str
    source: str
    format: str | None = None


def source_files(sources: Iterable[str]) -> list[SourceFile]:
    """Every file that `sources` mean, each once, in the order given; a `DataError` where there is none."""
    found: dict[Path, SourceFile] = {}
    for source in sources:
        for file in _files(source):
            found.setdefault(file.path.resolve(), file)
    return list(found.values())


def _files(source: str) -> list[SourceFile]:
    path = Path(source).expanduser()
    if source in EMBEDDED and not path.exists():
        return _embedded(source)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and _readable(path, p))
        if not inside:
            raise DataError(
                "holds no file that could be conversations.", path=str(path),
                rule=f"files ending in {', '.join(ENDINGS)}, or in .gz after that",
                hint="Name the files themselves in collect.sources.",
            )
        return [SourceFile(p, str(p), source) for p in inside]
    if path.exists():
        return [SourceFile(path, source, source)]
    matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    if not matches:
        near = did_you_mean(source, [*EMBEDDED, *_neighbours(path)])
        raise DataError(
            "matches no file." if glob.has_magic(source) else "does not exist.", path=source, value=source,
            rule="a file, a folder, a glob, or one of " + ", ".join(EMBEDDED), hint=near or "Check collect.sources.",
        )
    return [SourceFile(p, str(p), source) for p in matches]


def _readable(folder: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.name.lower().removesuffix(".gz").endswith(ENDINGS)


def _neighbours(path: Path) -> list[str]:
    return [str(p) for p in path.parent.iterdir()][:1000] if path.parent.is_dir() else []


def _embedded(word: str) -> list[SourceFile]:
    package, pattern, format_ = EMBEDDED[word]
    spec = importlib.util.find_spec(package)  # found, not imported: importing one of them reads all of its data
    if spec is None or spec.origin is None:
        raise DataError(
            f"the package {package} is not installed.", path="collect.sources", value=word, rule="installed data",
            hint=f"Install it: pip install {package.replace('_', '-')}.",
        )
    folder = Path(spec.origin).parent
    return [SourceFile(path, f"{word}/{path.name}", word, format_) for path in sorted(folder.glob(pattern))]
