"""Bytes of source files: unpacked from gzip, bzip2, xz and zstd, and out of zip and tar archives, without ever trusting them.

A file in an archive has the path ``archive.zip/folder/file``; a sheet of a workbook ``book.xlsx/Sheet``. Nothing is unpacked to a
place of its own name, so names in archives can do no harm. What unpacks to far more than it is worth is refused on the way.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from chattune.core import files
from chattune.core.errors import ChattuneError, DataError
from chattune.core.files import size
from chattune.dialogs.byte_files import ByteFile, Rewindable

if TYPE_CHECKING:
    import zipfile

FREE = 2**30  # bytes that a file may unpack to whatever its size: seconds of work, and no more memory than any other file
RATIO = 200  # bytes unpacked for each packed one, above that: text packs to a tenth, logs of one sentence to a hundredth
LIMIT = 2**38  # bytes that one file, or all files of one archive, may unpack to at the most
MEMBERS = 100_000  # files in one archive
ENDINGS = (".gz", ".bz2", ".xz", ".zst")
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst", *(f".tar{ending}" for ending in ENDINGS))

_ONE_FILE = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive", b"Rar!\x1a\x07": "a RAR archive", b"\x04\x22\x4d\x18": "an LZ4 file",
    b"%PDF-": "a PDF file", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"GIF8": "a picture", b"\x7fELF": "a program",
    b"MZ\x90": "a program", b"SQLite format 3\0": "an SQLite database", b"\xd0\xcf\x11\xe0": "an old or encrypted Office file",
}  # fmt: skip
_PIECE = 1 << 16
_ZSTD_PIECE = 1 << 10  # four packed bytes can stand for 128 KiB: what one piece unpacks to stays below 32 MiB
_XZ_MEMORY = 2**28  # bytes that an xz decoder may ask for: four times the strongest preset
_TAR_HEADER = 2**20  # bytes of a tar header with its long names
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


class Unreadable(DataError):
    """A source file that cannot be read; `reason` is the word under which it is counted when other files are read beside it."""

    def __init__(self, message: str, reason: str, **where: Any) -> None:
        super().__init__(message, **where)
        self.reason = reason


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name as it is shown, its bytes when unpacked, where it lies, and why it cannot be read, if so."""

    name: str
    size: int
    place: int
    refused: tuple[str, str] | None = None  # reason and detail


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file or of a file in an archive, unpacked. They can be read from the beginning again, not from elsewhere.

    `Unreadable` where the path leads to nothing, where the bytes are damaged, and where they unpack to more than is allowed.
    """
    with _raw(path) as (raw, packed):
        begin = raw.read(6)
        raw.seek(0)
        form = _form(begin)
        if form is None:
            yield raw
            return
        with _unpacked(form, raw, packed, path) as unpacked:
            if not _is_tar(unpacked):
                yield unpacked
                return
        if not path.is_file():
            raise _nested(path)
        with opened(_only_member(path)) as inside:
            yield inside


@contextlib.contextmanager
def seekable(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes as a file that can be read at any place; what is packed stands in a temporary file meanwhile."""
    with _raw(path) as (raw, _):
        plain = path.is_file() and _form(raw.read(6)) is None
        if plain:
            raw.seek(0)
            yield raw
            return
    with opened(path) as packed, _copied(packed) as copy:
        yield cast(BinaryIO, copy)


def members(path: Path) -> tuple[Member, ...] | None:
    """The files in the archive at `path`, by their names; none when it is no archive. A workbook of several sheets counts as one."""
    if not path.is_file():
        return None
    found = path.stat()
    index = _index(path, found.st_size, found.st_mtime_ns)
    return None if index is None else tuple(index.values())


def digest(path: Path) -> str:
    """sha256 of the file, for a file in an archive that of the archive, for a folder that of the names and files in it, as hex."""
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        return files.digest_of_data([[ascii(file.relative_to(path).as_posix()), digest(file)] for file in inside])
    on_disk = path if path.is_file() else _located(path)[0]
    found = on_disk.stat()
    return _digest(on_disk, found.st_size, found.st_mtime_ns)


def workbook_of(path: Path) -> tuple[Path, str] | None:
    """The workbook and the sheet that a path such as ``book.xlsx/Sheet`` leads to; none for every other path."""
    if path.exists():
        return None
    with contextlib.suppress(Unreadable):
        book, sheet = _located(path)
        with book.open("rb") as raw:
            zipped = is_zip(raw.read(4))
        if zipped and _is_workbook(book) and any(member.name == sheet for member in members(book) or ()):
            return book, sheet
    return None


def foreign(begin: bytes) -> str:
    """What kind of file begins like this, in words; empty when that is not known to be something else than text."""
    return next((name for mark, name in _FOREIGN.items() if begin.startswith(mark)), "")


def is_zip(begin: bytes) -> bool:
    """Whether a file that begins like this is a zip archive, which workbooks are too."""
    return begin.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def refuse_bomb(count: int, packed: int, path: Path) -> None:
    """Refuse to go on when `packed` bytes at `path` unpack to `count` and that is out of all proportion."""
    if count > LIMIT or (count > FREE and count > RATIO * packed):
        raise Unreadable(
            f"unpacks to more than {size(min(count, LIMIT))} from {size(packed)}.", "bomb", path=str(path), value=count,
            rule=f"at most {RATIO} bytes for each packed one above {size(FREE)}, and {size(LIMIT)} in all",
            hint="It looks made to fill memory or disk. If it is not, unpack it yourself and name what is inside.",
        )


# ------------------------------------------------------------------------------------------------------------------ finding


@contextlib.contextmanager
def _raw(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The bytes as they stand, and how many there are: of the file, or of the file in an archive as that holds it."""
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        kind = None
    except (OSError, ValueError) as error:
        raise _missing(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if kind is None:
        with _member(path) as found:
            yield found
        return
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "not a regular file"
        raise Unreadable(f"is {what}.", "unreadable", path=str(path), rule="a file", hint="Check collect.sources.")
    try:
        raw = path.open("rb")
    except OSError as error:
        raise _missing(path, f"cannot be read: {error.strerror}") from None
    with raw:
        begin = raw.read(4)
        raw.seek(0)
        if not (is_zip(begin) and not _is_workbook(path)) and not _is_tar(raw):
            yield raw, path.stat().st_size
            return
    with _member(_only_member(path)) as found:
        yield found


def _missing(path: Path, reason: str) -> Unreadable:
    return Unreadable(f"{reason}.", "unreadable", path=str(path), rule="a readable file", hint="Check collect.sources.")


def _nested(path: Path) -> Unreadable:
    return Unreadable(
        "is an archive inside an archive.", "nested_archive", path=str(path), rule="an archive of files, packed or plain",
        hint="Unpack the outer one first.",
    )


def _located(path: Path) -> tuple[Path, str]:
    """The archive that a path leads into, and the name behind it."""
    for parent in path.parents:
        with contextlib.suppress(OSError, ValueError):
            if parent.is_file():
                return parent, path.relative_to(parent).as_posix()
    raise _missing(path, "does not exist")


@contextlib.contextmanager
def _member(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    archive, name = _located(path)
    found = archive.stat()
    if (inside := _index(archive, found.st_size, found.st_mtime_ns)) is None:
        raise _missing(path, "does not exist")
    member = inside.get(name)
    if member is None:
        names = ", ".join(itertools.islice(inside, 5))
        raise _missing(path, f"does not exist: the archive holds {names or 'nothing'}{' …' if len(inside) > 5 else ''}")
    if member.refused:
        reason, detail = member.refused
        raise Unreadable(
            f"{detail}.", reason, path=str(path), rule="an archive of plain files", hint="Unpack it yourself, or leave it out."
        )
    with archive.open("rb") as raw:
        if is_zip(raw.read(4)):
            zipped = _zip(archive, found.st_size, found.st_mtime_ns)
            information = zipped.infolist()[member.place]
            packed = max(1, information.compress_size)
            bounded = _Bounded(lambda: cast(BinaryIO, zipped.open(information)), packed, path, "zip")
        else:
            source = _tar(archive, found.st_size, found.st_mtime_ns)
            packed = max(1, member.size)
            bounded = _Bounded(lambda: cast(BinaryIO, _Section(source, member.place, member.size)), packed, path, "tar")
    with cast(BinaryIO, io.BufferedReader(bounded, _PIECE)) as unpacked:
        begin = unpacked.read(6)
        unpacked.seek(0)
        # A workbook is a zip archive too; whoever reads workbooks looks into it with limits of its own.
        if (is_zip(begin) and not name.lower().endswith((".xlsx", ".xlsm"))) or _is_tar(unpacked):
            raise _nested(path)
        yield unpacked, packed


def _only_member(path: Path) -> Path:
    inside = members(path) or ()
    readable = [member for member in inside if not member.refused]
    if len(readable) == 1:
        return path / readable[0].name
    if not readable:
        told = f": {inside[0].refused[1]}" if inside and inside[0].refused else ""
        raise Unreadable(f"is an archive that holds no file{told}.", "no_file", path=str(path), rule="an archive of conversations",
                         hint="Leave it out of collect.sources.")  # fmt: skip
    names = ", ".join(member.name for member in readable[:4])
    raise Unreadable(
        f"is an archive of {len(readable)} files, not one.", "several_files", path=str(path), rule="one file",
        hint=f"Name one of them: {path}/{readable[0].name} (it holds {names}{' …' if len(readable) > 4 else ''}).",
    )


@functools.lru_cache(maxsize=256)
def _digest(path: Path, length: int, changed: int) -> str:
    return files.digest_of(path)


@functools.lru_cache(maxsize=64)
def _index(path: Path, length: int, changed: int) -> dict[str, Member] | None:
    with path.open("rb") as raw:
        begin = raw.read(6)
    if is_zip(begin):
        return _sheets(path) if _is_workbook(path) else _zip_members(path, length, changed)
    with _telling(path, "tar"):
        if form := _form(begin):
            try:
                with path.open("rb") as raw, _unpacked(form, raw, length, path) as unpacked:
                    if not _is_tar(unpacked):
                        return None
            except Unreadable:
                return None  # told by whoever reads it
        else:
            with path.open("rb") as raw:
                if not _is_tar(raw):
                    return None
        return _tar_members(path, _tar(path, length, changed))


def _sheets(path: Path) -> dict[str, Member] | None:
    from chattune.dialogs.column_files import sheets

    names = sheets(path)
    return {name: Member(name, 0, place) for place, name in enumerate(names)} if len(names) > 1 else None


# ---------------------------------------------------------------------------------------------------------------- archives


@functools.lru_cache(maxsize=4)
def _zip(path: Path, length: int, changed: int) -> zipfile.ZipFile:
    import zipfile

    with _telling(path, "zip"):
        return zipfile.ZipFile(path)


def _is_workbook(path: Path) -> bool:
    found = path.stat()
    zipped = _zip(path, found.st_size, found.st_mtime_ns)
    names = zipped.NameToInfo
    if "[Content_Types].xml" in names or "mimetype" in names:
        if "xl/workbook.xml" in names:
            return True
        raise Unreadable(
            "is a document of an Office kind, not a workbook of Excel.", "binary", path=str(path), rule="text, or a table as .xlsx",
            hint="Save it as .xlsx, .csv or plain text.",
        )
    return False


def _zip_members(path: Path, length: int, changed: int) -> dict[str, Member]:
    import zipfile

    inside = [(place, entry) for place, entry in enumerate(_zip(path, length, changed).infolist()) if not entry.is_dir()]
    _refuse_many(path, len(inside))
    # Entries may lie over each other; what they claim together tells it.
    refuse_bomb(sum(entry.file_size for _, entry in inside), length, path)
    names = _Names()
    found = []
    for place, entry in inside:
        refused = None
        if stat.S_ISLNK(entry.external_attr >> 16):
            refused = ("link", "is a link in an archive")
        elif entry.flag_bits & 1:
            refused = ("encrypted", "is encrypted")
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            refused = ("unknown_method", f"is packed by method {entry.compress_type}, which is not known")
        found.append(Member(names.safe(entry.filename), entry.file_size, place, refused))
    return {member.name: member for member in sorted(found, key=lambda member: member.name)}


@functools.lru_cache(maxsize=2)
def _tar(path: Path, length: int, changed: int) -> _Kept:
    """The bytes of a tar archive as a file that can be read at any place: the file itself, or an unpacked copy without a name."""
    raw = path.open("rb")
    begin = raw.read(6)
    form = _form(begin)
    if form is None:
        return _Kept(raw)
    with raw, _unpacked(form, raw, length, path) as unpacked:
        return _Kept(_copied(unpacked))


def _tar_members(path: Path, kept: _Kept) -> dict[str, Member]:
    import tarfile

    source = kept.file
    whole = os.fstat(source.fileno()).st_size
    names, found = _Names(), list[Member]()
    with tarfile.open(fileobj=_Headers(source, whole), mode="r:") as archive:
        while entry := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every entry that it passes
            if entry.isdir():
                continue
            _refuse_many(path, len(found) + 1)
            refused = None
            if entry.issym() or entry.islnk():
                refused = ("link", "is a link in an archive")
            elif not entry.isreg() or entry.issparse():
                refused = ("not_a_file", "is not a plain file")
            elif entry.offset_data + entry.size > whole:
                refused = ("damaged", "breaks off: the archive ends before it does")
            found.append(Member(names.safe(entry.name), entry.size, entry.offset_data, refused))
        source.seek(archive.offset)
        if source.read(512).strip(b"\0"):  # tarfile takes a header that it cannot read for the end
            detail = f"cannot be read on from byte {archive.offset} of the archive"
            found.append(Member(names.safe("(what follows)"), 0, archive.offset, ("damaged", detail)))
    return {member.name: member for member in sorted(found, key=lambda member: member.name)}


class _Kept:
    """A file that stays open as long as somebody needs it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def __del__(self) -> None:
        self.file.close()


class _Names:
    """Names of an archive's files without what leads elsewhere; no two are alike."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def safe(self, name: str) -> str:
        parts = [part for part in _UNSAFE.sub("?", name).replace("\\", "/").split("/") if part not in ("", ".", "..")]
        own = wanted = "/".join(parts)[-512:].encode("utf-8", "replace").decode() or "unnamed"
        number = 1
        while own in self._taken:
            number += 1
            own = f"{wanted}~{number}"
        self._taken.add(own)
        return own


class _Section(io.RawIOBase):
    """`length` bytes of a file from `start` on, read by place, so that several can be open at once."""

    def __init__(self, kept: _Kept, start: int, length: int) -> None:
        self._kept, self._start, self._length, self._at = kept, start, length, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._kept.file.seek(self._start + self._at)
        data = self._kept.file.read(min(len(buffer), self._length - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Headers(ByteFile):
    """A tar archive's bytes for `tarfile`, which reads whole whatever a header calls a name: one of more than a mebibyte is refused."""

    def __init__(self, source: IO[bytes], length: int) -> None:
        self._source, self._length, self._at = source, length, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        import tarfile

        if not 0 <= count <= _TAR_HEADER:
            raise tarfile.ReadError(f"a header of {size(count)}")
        self._source.seek(self._at)
        data = self._source.read(count)
        self._at += len(data)
        return data


# --------------------------------------------------------------------------------------------------------------- unpacking


class _Bounded(Rewindable):
    """Bytes that are counted while they are read; begins anew at ``seek(0)``. Whatever goes wrong is told as `Unreadable`."""

    def __init__(self, begin: Callable[[], BinaryIO], packed: int, path: Path, form: str) -> None:
        self._begin, self._packed, self._path, self._form = begin, packed, path, form
        self._source: BinaryIO | None = None

    def rewind(self) -> None:
        if self.count:
            self._close_source()

    def readinto(self, buffer: Any) -> int:
        with _telling(self._path, self._form):
            if self._source is None:
                self._source = self._begin()
            data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        refuse_bomb(self.count, self._packed, self._path)
        return len(data)

    def close(self) -> None:
        self._close_source()
        super().close()

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source, self.count = None, 0


class _Decompressor(Protocol):
    """What bz2, lzma and zstd unpack one stream with."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Streams(io.RawIOBase):
    """Streams one after the other, unpacked piece by piece: never more than is asked for is held."""

    def __init__(self, raw: BinaryIO, new: Callable[[], _Decompressor], piece: int) -> None:
        self._raw, self._new, self._piece = raw, new, piece
        self._stream: _Decompressor | None = None
        self._rest, self._later = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            piece = b""
            if self._stream is None or self._stream.needs_input:
                piece, self._rest = self._rest or self._raw.read(self._piece), b""
                if not piece and self._stream is None:
                    return 0
                if not piece:
                    raise EOFError("it ends before its end mark")
            if self._stream is None:
                piece = piece.lstrip(b"\0") if self._later else piece  # zeros may fill up what is behind a stream
                if not piece:
                    continue
                self._stream = self._new()
            data = self._stream.decompress(piece, len(buffer))
            if self._stream.eof:
                self._rest, self._stream, self._later = self._stream.unused_data, None, True
            if data:
                buffer[: len(data)] = data
                return len(data)


class _Zstd:
    """zstandard's decompressor with the manners of the standard library's."""

    def __init__(self) -> None:
        from chattune.dialogs.column_files import needed

        zstandard = needed("zstandard", "files packed with zstd")
        self._stream = zstandard.ZstdDecompressor().decompressobj()
        self._ready, self._at = b"", 0  # what is unpacked, and how much of it is given

    @property
    def eof(self) -> bool:
        return self._stream.eof and self.needs_input

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._ready)

    @property
    def unused_data(self) -> bytes:
        return cast(bytes, self._stream.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if data:
            self._ready, self._at = self._ready[self._at :] + self._stream.decompress(data), 0
        given = self._ready[self._at : self._at + max_length]
        self._at += len(given)
        return given


def _form(begin: bytes) -> str | None:
    return next((name for mark, name in _ONE_FILE.items() if begin.startswith(mark)), None)


def _unpacked(form: str, raw: BinaryIO, packed: int, path: Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Bounded(lambda: _unpacking(form, raw), packed, path, form), _PIECE))


def _unpacking(form: str, raw: BinaryIO) -> BinaryIO:
    raw.seek(0)
    if form == "gzip":
        import gzip

        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if form == "bzip2":
        import bz2

        return cast(BinaryIO, _Streams(raw, bz2.BZ2Decompressor, _PIECE))
    if form == "xz":
        import lzma

        return cast(BinaryIO, _Streams(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY), _PIECE))
    return cast(BinaryIO, _Streams(raw, _Zstd, _ZSTD_PIECE))


@contextlib.contextmanager
def _telling(path: Path, form: str) -> Iterator[None]:
    """Turn what unpackers raise into an error of ours."""
    try:
        yield
    except ChattuneError:
        raise
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        known = ("zlib", "_lzma", "lzma", "zipfile", "tarfile", "zstandard", "zstd")
        if not isinstance(error, (EOFError, OSError, RuntimeError, NotImplementedError, ValueError)) and module not in known:
            raise
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise Unreadable(
            f"is a damaged {form} file: {said[:160]}.", "damaged", path=str(path), rule="a whole file",
            hint="Fetch or compress it again.",
        ) from None


def _refuse_many(path: Path, count: int) -> None:
    if count > MEMBERS:
        raise Unreadable(
            f"is an archive of more than {MEMBERS} files.", "too_many_files", path=str(path), rule=f"at most {MEMBERS} files",
            hint="Unpack it and name the folder.",
        )


def _is_tar(file: BinaryIO) -> bool:
    begin = file.read(512)
    file.seek(0)
    return len(begin) == 512 and begin[257:262] == b"ustar"


def _copied(source: BinaryIO) -> IO[bytes]:
    with contextlib.ExitStack() as undone:
        copy = undone.enter_context(tempfile.TemporaryFile(prefix="chattune-"))
        with files.telling_space(Path(tempfile.gettempdir())):
            while piece := source.read(1 << 20):
                copy.write(piece)
            copy.flush()
        copy.seek(0)
        undone.pop_all()  # it is whole, and stays open
    return copy
