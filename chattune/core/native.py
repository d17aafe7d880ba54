"""C++ sources built on first use, and found again: `built` gives the library, or the reason why there is none.

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
from pathlib import Path

_FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
_SECONDS = 300  # after which a compiler is given up


def switched_off() -> bool:
    """Whether the environment variable ``CHATTUNE_NATIVE=0`` turns compiled code off."""
    return os.environ.get("CHATTUNE_NATIVE") == "0"


def built(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library made of the C++ file `source`, built if need be, and ``""``; or none and why."""
    if sys.platform not in ("linux", "darwin"):
        return None, f"compiled code is not made for {sys.platform}"
    compiler = next(filter(None, map(shutil.which, ("g++", "c++"))), None)
    if compiler is None:
        return None, "there is no C++ compiler (g++) on this machine"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chattune" / "native"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{source.stem}-{_key(compiler, source)}.so"
        if not path.exists():
            _build(compiler, source, path)
        if (trouble := _foreign(folder) or _foreign(path)) is not None:
            return None, trouble
        return ctypes.CDLL(str(path)), ""
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None)
        words = (said if isinstance(said, str) else "").strip().splitlines() or [str(error)]
        return None, f"{compiler} cannot build {source.name}: {words[0]}"
    except (OSError, RuntimeError) as error:  # no home, no room, no right to write or to load
        return None, f"what is made of {source.name} cannot be kept or loaded: {error}"


def threads_of_torch() -> tuple[int | None, int | None]:
    """Where PyTorch's OpenMP begins a parallel region and counts its threads; none where it has another pool."""
    try:
        loaded = ctypes.CDLL(None)
        found = (loaded.GOMP_parallel, loaded.omp_get_num_threads)
    except (OSError, AttributeError):
        return None, None
    return ctypes.cast(found[0], ctypes.c_void_p).value, ctypes.cast(found[1], ctypes.c_void_p).value


def _build(compiler: str, source: Path, path: Path) -> None:
    """Compile beside `path` and rename: another process sees a whole library or none."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        subprocess.run(
            [compiler, *_FLAGS, "-o", name, str(source)], check=True, capture_output=True, text=True, timeout=_SECONDS,
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


def _key(compiler: str, source: Path) -> str:
    """Of source, compiler and processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    parts = (source.read_bytes(), version.encode(), " ".join(_FLAGS).encode(), _processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _processor() -> str:
    """What tells this processor from one that has other instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"
    wanted = ("model name", "flags", "Features", "CPU part", "cpu family", "model\t")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(wanted)})])
