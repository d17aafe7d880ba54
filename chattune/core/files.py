"""Files that are either wholly there or not at all: atomic writes, digests, room on the disk, torn-tolerant reading."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chattune.core.errors import ArtifactError, CorruptError, SpaceError


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_data(data: Any) -> str:
    """sha256 of plain data in its canonical JSON form, as hex."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Replace `path` so that a reader, or a crash, sees the old bytes or the new ones and nothing between."""
    with replacing(path, mode) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end, whole or not at all."""
    with telling_space(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        sync(path.parent)


def write_json(path: Path, data: Any) -> None:
    write_atomically(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Plain data from a JSON file of ours; damage is told as such."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError("is missing.", path=str(path), rule="a file that every run of this kind has") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptError(f"cannot be read: {error}.", path=str(path), rule="valid JSON") from None


@contextlib.contextmanager
def telling_damage(path: Path | str, rule: str) -> Iterator[None]:
    """Turn what in a stranger's file makes its reader stumble into a `CorruptError`: a number where a list should stand, and the like.

    What is often wrong has messages of its own; this is the net below them. `--debug` shows where it caught.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, RuntimeError) as error:
        if "can't allocate memory" in str(error):  # torch's word for it
            raise MemoryError(str(error)) from error
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CorruptError(f"contradicts itself ({said}).", path=str(path), rule=rule, hint="Copy it again.") from error


def require_inside(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse files of a stranger's folder that a link leads out of it: what is read there is copied into what is made and given on.

    The cache of Hugging Face is one folder: ``snapshots/REVISION/FILE`` may be a link to ``blobs/DIGEST``.
    """
    home = folder.resolve()
    roots = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    for path in paths:
        found = path.resolve()
        if not any(found.is_relative_to(root) for root in roots):
            raise ArtifactError(
                "is a link that leads out of its folder.", path=str(path), value=str(found), rule="files of one folder",
                hint="Put the file itself there, if you trust the folder.",
            )


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends well: every file is synced, then renamed in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".tmp-{path.name}-"))
    try:
        with telling_space(path):
            yield temporary
            for file in sorted(temporary.rglob("*")):
                sync(file)
            os.chmod(temporary, 0o755)
            sync(temporary)
            os.rename(temporary, path)
            sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def require_space(path: Path, needed: int) -> None:
    """Refuse early when fewer than `needed` × 1.1 bytes are free where `path` will stand."""
    existing = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed * 1.1:
        raise SpaceError(
            f"needs {size(needed * 1.1)} and {size(free)} are free.", path=str(path), value=free, rule="enough free disk",
            hint="Free some space, or choose another place with --home.",
        )


@contextlib.contextmanager
def telling_space(path: Path) -> Iterator[None]:
    """Turn "no space left" and its kin into an error that names the path and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            existing = next(p for p in (path, *path.parents) if p.exists())
            free = shutil.disk_usage(existing).free
            raise SpaceError(
                f"could not be written: {os.strerror(error.errno)} ({size(free)} free).", path=str(path), value=free,
                rule="a disk that takes the bytes", hint="What was saved before is intact; free some space and resume.",
            ) from error
        raise


def read_lines_of_json(path: Path) -> Iterator[dict[str, Any]]:
    """The records of an append-only JSON Lines file. A last line that a crash tore is left out."""
    with path.open("rb") as file:
        for _, record in lines_of_json(file, path):
            yield record


def lines_of_json(lines: Iterable[bytes], path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line of `path` and its record. A last line that a crash tore is left out."""
    for line in lines:
        try:
            yield line, json.loads(line)
        except ValueError:
            if line.endswith(b"\n"):
                raise CorruptError("holds a line that is not JSON.", path=str(path), rule="one JSON object a line") from None


def size(count: float) -> str:
    """A number of bytes for people: ``1.4 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
