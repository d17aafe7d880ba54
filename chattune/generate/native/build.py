"""Building the compiled step on first use, and finding it again: `library` gives it, or the reason why there is none.

What is built belongs to one source, compiler and processor, in the user's own cache; a file there that somebody else could have
written is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("step.cpp")
_FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
_SECONDS = 300  # after which a compiler is given up


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled step, built if need be, and ``""``; or none and why."""
    if sys.platform not in ("linux", "darwin"):
        return None, f"the compiled step is not made for {sys.platform}"
    compiler = next(filter(None, map(shutil.which, ("g++", "c++"))), None)
    if compiler is None:
        return None, "there is no C++ compiler (g++) on this machine"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chattune" / "native"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"step-{_key(compiler)}.so"
        if not path.exists():
            _build(compiler, path)
        if (trouble := _foreign(folder) or _foreign(path)) is not None:
            return None, trouble
        return ctypes.CDLL(str(path)), ""
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None)
        words = (said if isinstance(said, str) else "").strip().splitlines() or [str(error)]
        return None, f"{compiler} cannot build the step: {words[0]}"
    except (OSError, RuntimeError) as error:  # no home, no room, no right to write or to load
        return None, f"the compiled step cannot be kept or loaded: {error}"


def _build(compiler: str, path: Path) -> None:
    """Compile beside `path` and rename: another process sees a whole library or none."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        subprocess.run(
            [compiler, *_FLAGS, "-o", name, str(SOURCE)], check=True, capture_output=True, text=True, timeout=_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        os.chmod(name, 0o700)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _foreign(path: Path) -> str | None:
    """Why what lies at `path` may have been written by somebody else."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        return f"{path} could have been written by another user and is not loaded; delete it"
    return None


def _key(compiler: str) -> str:
    """Of source, compiler and processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    parts = (SOURCE.read_bytes(), version.encode(), " ".join(_FLAGS).encode(), _processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _processor() -> str:
    """What tells this processor from one that has other instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"
    wanted = ("model name", "flags", "Features", "CPU part", "cpu family", "model\t")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(wanted)})])
