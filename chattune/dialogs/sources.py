"""Sources: which files a recipe means by paths, folders, globs, archives, ``hf:`` datasets and the words for data that is installed.

A folder and an archive give every file whose name says that it may hold conversations; what they hold besides is counted, and so is
every link that leads out of a folder: nothing is followed to where the user did not point. An export of Slack is one source, since its
threads go from file to file.
"""

from __future__ import annotations

import glob
import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from chattune.core.errors import DataError, did_you_mean
from chattune.dialogs import compressed
from chattune.dialogs.compressed import ARCHIVES, Unreadable, members
from chattune.dialogs.hub import PREFIX, HubSource, hub_files, saved

EMBEDDED = {
    "chatterbot-english": ("chatterbot_corpus", "data/english/*.yml", "chatterbot"),
    "chatterbot-chinese": ("chatterbot_corpus", "data/chinese/*.yml", "chatterbot"),
    "chitchat": ("chitchat_dataset", "dataset.json", "chitchat"),
}
ENDINGS = (
    ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".log", ".yml", ".yaml", ".parquet", ".arrow", ".feather", ".xlsx", ".xlsm",
    ".mbox", ".eml", ".html", ".htm", ".md", ".markdown",
)  # fmt: skip


@dataclass(frozen=True)
class SourceFile:
    """One file: where it is; its name in what we write, which does not depend on the machine; the source that means it; its format
    when that is known; whether it is one of many, so that the others are read when it cannot be; and, where it is known beforehand
    that it is left out, the reason and a detail."""

    path: Path
    shown: str
    source: str
    format: str | None = None
    among: bool = False
    skip: tuple[str, str] | None = None

    def digest(self) -> str:
        """sha256 of the file, or of the archive that it lies in, as hex; for one that is left out the reason."""
        return f"left out: {self.skip[0]}" if self.skip else compressed.digest(self.path)


def source_files(sources: Iterable[str]) -> list[SourceFile]:
    """Every file that `sources` mean, each once, in the order given; a `DataError` where there is none."""
    found: dict[Any, SourceFile] = {}
    for source in sources:
        files = list(_files(source))
        if not any(file.skip is None for file in files):
            why = f" ({files[0].shown}: {files[0].skip[1]})" if files and files[0].skip else ""
            raise DataError(
                f"holds no file that could be conversations{why}.", path=source,
                rule=f"files ending in {', '.join(ENDINGS)}, packed or not", hint="Name the files themselves in collect.sources.",
            )
        for file in files:
            found.setdefault(file.path.resolve() if file.skip is None else (file.shown, file.skip), file)
    return list(found.values())


def _files(source: str) -> Iterator[SourceFile]:
    try:
        path = Path(source).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, no such user
        raise DataError(f"cannot be looked for: {getattr(error, 'strerror', None) or error}.", path=source[:200], value=source[:200],
                        rule="a file, a folder or a glob", hint="Check collect.sources.") from None  # fmt: skip
    if source in EMBEDDED and not exists:
        yield from _embedded(source)
    elif source.startswith(PREFIX) and not exists:
        yield from _dataset(source)
    elif path.is_dir():
        yield from _folder(path, source)
    elif exists:
        yield from _expanded(path, source, source, among=False)
    elif glob.has_magic(source):
        matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not matches:
            raise _nothing(source, path, "matches no file.")
        homes = _homes(_fixed(path))
        for match in matches:
            if _within(match, homes):
                yield from _expanded(match, str(match), source, among=True)
            else:
                yield _left_out(match, source, "link_outside", "is reached by a link that leads out of the folder")
    else:
        yield from _inside(path, source)


def _dataset(source: str) -> Iterator[SourceFile]:
    """The files of a dataset of Hugging Face; of a copy of one on this machine those that are what they seem."""
    local = Path(HubSource.read(source).name).expanduser()
    homes = _homes(local) if local.is_dir() else ()
    found, others = list(hub_files(source)), list[str]()
    for file, shown in found:
        if file.is_dir():
            yield from _folder(file, source)
        elif homes and not _readable(file.name):
            others.append(file.name)
        elif homes and not _within(file, homes):
            yield _left_out(file, source, "link_outside", "is a link that leads out of the folder")
        else:
            yield from _expanded(file, shown, source, among=bool(homes) and len(found) > 1)
    yield from _others(local, str(local), source, others)


def _expanded(path: Path, shown: str, source: str, *, among: bool) -> Iterator[SourceFile]:
    """The file itself, or the files in the archive that it is."""
    try:
        inside = members(path)
    except Unreadable:
        inside = None  # told by whoever reads it
    if inside is None or _is_slack_export(path):
        yield SourceFile(path, shown, source, None if inside is None else "slack", among)
        return
    named = [member for member in inside if not _hidden(PurePosixPath(member.name))]
    every = len(named) == 1 or path.suffix.lower() in (".xlsx", ".xlsm")
    fitting = [member for member in named if every or _readable(member.name) or (member.refused or ("",))[0] == "damaged"]
    several = among or sum(not member.refused for member in fitting) > 1
    for member in fitting:
        yield SourceFile(path / member.name, f"{shown}/{member.name}", source, among=several, skip=member.refused)
    yield from _others(path, shown, source, [member.name for member in named if member not in fitting])


def _inside(path: Path, source: str) -> Iterator[SourceFile]:
    """The file, or the files below a folder, in an archive that the path leads into."""
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    inside = None if archive is None else members(archive)
    if archive is None or inside is None:
        raise _nothing(source, path, "does not exist.")
    wanted = path.relative_to(archive).as_posix()
    exact = [member for member in inside if member.name == wanted]
    below = [member for member in inside if member.name.startswith(f"{wanted}/") and _readable(member.name)]
    if not exact and not below:
        near = did_you_mean(wanted, [member.name for member in inside][:1000])
        raise DataError(f"does not exist in {archive}.", path=source, value=source, rule="a file in the archive",
                        hint=near or "Name the archive alone to read all of it.")  # fmt: skip
    for member in exact or below:
        yield SourceFile(archive / member.name, f"{archive}/{member.name}", source, among=not exact, skip=member.refused)


def _folder(folder: Path, source: str) -> Iterator[SourceFile]:
    if (kept := saved(folder)) is not None:
        for file in (file for files in kept.values() for file in files):
            yield SourceFile(file, str(file), source)
        return
    homes = _homes(folder)
    found, others, refused = list[Path](), list[str](), list[SourceFile]()

    def unreadable(error: OSError) -> None:
        refused.append(_left_out(Path(error.filename), source, "unreadable", f"cannot be listed: {error.strerror}"))

    for at, folders, names in os.walk(folder, onerror=unreadable):
        for name in sorted(folders):
            if not name.startswith(".") and (path := Path(at, name)).is_symlink():
                refused.append(_left_out(path, source, "link", "is a link to a folder, which is not followed"))
        folders[:] = sorted(name for name in folders if not _hidden(PurePosixPath(name)))
        if _is_slack_export(Path(at)):
            found.append(Path(at))
            folders[:], names = [], []
        for path in (Path(at, name) for name in names if not name.startswith(".")):
            if not _readable(path.name):
                others.append(path.name)
            elif not path.is_file():
                refused.append(_left_out(path, source, "not_a_file", "is no file that can be read"))
            elif path.is_symlink() and not _within(path, homes):
                refused.append(_left_out(path, source, "link_outside", "is a link that leads out of the folder"))
            else:
                found.append(path)
    for path in sorted(found):
        if path.is_dir():
            yield SourceFile(path, str(path), source, "slack", among=path != folder or bool(refused))
        else:
            yield from _expanded(path, str(path), source, among=True)
    yield from sorted(refused, key=lambda file: file.shown)
    yield from _others(folder, str(folder), source, others)


def _homes(folder: Path) -> tuple[Path, ...]:
    """Where links in a folder may lead: the folder itself. The cache of Hugging Face is one folder, too: what it calls
    ``snapshots/REVISION/FILE`` is a link to ``blobs/DIGEST``."""
    home = folder.resolve()
    return (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)


def _within(path: Path, homes: Iterable[Path]) -> bool:
    return any(path.resolve().is_relative_to(home) for home in homes)


def _fixed(pattern: Path) -> Path:
    """The folder that a glob's first part without a wildcard names."""
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def _is_slack_export(path: Path) -> bool:
    from chattune.dialogs.readers.slack import is_export  # on use: settings are read without any reader

    return is_export(path)


def _left_out(path: Path, source: str, reason: str, detail: str) -> SourceFile:
    return SourceFile(path, str(path), source, among=True, skip=(reason, detail))


def _others(path: Path, shown: str, source: str, names: list[str]) -> Iterator[SourceFile]:
    """One entry for everything whose name says that it is something else."""
    if names:
        endings = Counter(PurePosixPath(name).suffix.lower() or "none" for name in names)
        told = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(8))
        detail = f"{len(names)} files of other endings were not looked at: {told}{' …' if len(endings) > 8 else ''}"
        yield SourceFile(path / "*", shown, source, among=True, skip=("other_endings", detail))


def _readable(name: str) -> bool:
    """Whether a file's name says that it may hold conversations, or be an archive of such files."""
    plain = name.lower()
    for ending in compressed.ENDINGS:
        plain = plain.removesuffix(ending)
    return plain.endswith(ENDINGS) or name.lower().endswith(ARCHIVES)


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _nothing(source: str, path: Path, message: str) -> DataError:
    near = did_you_mean(source, [*EMBEDDED, *_neighbours(path)])
    return DataError(
        message, path=source, value=source, rule="a file, a folder, a glob, hf:NAME, or one of " + ", ".join(EMBEDDED),
        hint=near or "Check collect.sources.",
    )


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
