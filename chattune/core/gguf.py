"""The container of a GGUF file, read and written: its metadata and where its tensors lie. Who knows what numbers mean turns them.

Layout (little-endian): ``GGUF``, version, two counts; metadata as key, type, value; tensors as name, dimensions (the fastest
first), type, offset; padding; data. Everything is checked against the size of the file before memory is taken, and all that is
wrong with the tensors is said at once. Source: the GGUF specification of ggml, versions 2 and 3.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError

# type of a tensor: (its number in the file, numbers in a block, bytes of a block)
BLOCKS: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98), "IQ1_S": (19, 256, 50), "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82), "IQ4_XS": (23, 256, 136), "IQ1_M": (29, 256, 56),
    "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17),
}  # fmt: skip
_TYPE_OF = {number: name for name, (number, _, _) in BLOCKS.items()}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAGIC, _VERSION, _ALIGNMENT = b"GGUF", 3, 32
# Beyond any real file (a vocabulary of 262,144 with its merges), and small enough that a hostile one takes little memory.
_LARGEST_KEY, _LARGEST_STRING, _MOST_LISTED, _MOST_ENTRIES = 1 << 12, 1 << 20, 1 << 20, 1 << 16


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies: `shape` with rows first, `type` a key of `BLOCKS`, bytes [`start`, `start` + `size`) of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """A file whose container is sound. `metadata` holds numbers, truth values, texts, and lists of one of them."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """True where the file begins as a GGUF file does."""
    with open(path, "rb") as file:
        return file.read(4) == _MAGIC


def read_gguf(path: Path) -> GgufFile:
    """The container of the file, checked; no tensor is read.

    `ArtifactError` for a version or a tensor type that is not known, `CorruptError` for what contradicts itself or the size
    of the file: lengths, duplicate keys and names, tensors that overlap, leave holes or lie outside.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            return _Reader(path, file, size).whole()
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror or error}.", path=str(path), rule="a GGUF file") from None


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size, self.place, self.left = path, file, size, 0, _MOST_LISTED

    def whole(self) -> GgufFile:
        if self.take(4, "the mark of a GGUF file") != _MAGIC:
            raise self.corrupt("does not begin as a GGUF file does")
        version = int(self.scalar("I"))
        if version not in (2, 3):
            big = version & 0xFFFF == 0
            raise ArtifactError(
                f"is {'a big-endian GGUF file' if big else f'version {version} of GGUF'}.", path=str(self.path), value=version,
                rule="GGUF version 2 or 3, little-endian", hint="Convert it with a current llama.cpp.",
            )
        tensor_count, entry_count = int(self.scalar("Q")), int(self.scalar("Q"))
        for count, what in ((tensor_count, "tensors"), (entry_count, "entries of metadata")):
            if count > _MOST_ENTRIES or count * 12 > self.size:
                raise self.corrupt(f"claims {count} {what}")
        metadata = self.metadata(entry_count)
        headers = [self.header() for _ in range(tensor_count)]
        return GgufFile(self.path, metadata, self.placed(headers, metadata.get("general.alignment", 32)))

    def metadata(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.string(_LARGEST_KEY)
            if key in found:
                raise self.corrupt(f"gives '{key}' twice")
            found[key] = self.value(int(self.scalar("I")), key)
        return found

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(_LARGEST_STRING)
        if kind != _ARRAY:
            return self.scalar(self.code(kind, key))
        kind, count = int(self.scalar("I")), int(self.scalar("Q"))
        if kind == _STRING:
            self.count(count, 8, f"texts in '{key}'")
            return [self.string(_LARGEST_STRING) for _ in range(count)]
        code = self.code(kind, key)
        width = struct.calcsize(f"<{code}")
        self.count(count, width, f"numbers in '{key}'")
        return list(struct.unpack(f"<{count}{code}", self.take(count * width, f"'{key}'")))

    def count(self, count: int, width: int, what: str) -> None:
        """Everything listed in the file counts: each number takes up to 40 bytes here, however few it takes there."""
        if count * width > self.size - self.place or count > self.left:
            raise self.corrupt(f"claims {count} {what}")
        self.left -= count

    def header(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string(_LARGEST_KEY)
        dimensions = int(self.scalar("I"))
        if not 1 <= dimensions <= 4:
            raise self.corrupt(f"gives {name!r} {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions, "a shape"))
        return name, tuple(reversed(shape)), int(self.scalar("I")), int(self.scalar("Q"))

    def placed(self, headers: Iterable[tuple[str, tuple[int, ...], int, int]], alignment: Any) -> dict[str, GgufTensor]:
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self.corrupt(f"has an alignment of {alignment}")
        data, wrong = _up(self.place, alignment), []
        found: dict[str, GgufTensor] = {}
        for name, shape, number, offset in headers:
            if number not in _TYPE_OF:
                wrong.append(f"{name!r} has the unknown type {number}")
                continue
            kind = _TYPE_OF[number]
            _, block, width = BLOCKS[kind]
            count = math.prod(shape)
            if name in found:
                wrong.append(f"{name!r} stands there twice")
            elif not 0 < count <= 1 << 48 or shape[-1] % block:
                wrong.append(f"{name!r} has the shape {'×'.join(map(str, shape))}, which {kind} cannot hold")
            elif data + offset + count // block * width > self.size or offset % alignment:
                wrong.append(f"{name!r} lies outside the file" if not offset % alignment else f"{name!r} is not aligned")
            else:
                found[name] = GgufTensor(name, shape, kind, data + offset, count // block * width)
        if not wrong:
            wrong = _overlaps(sorted(found.values(), key=lambda tensor: tensor.start), data, self.size, alignment)
        if wrong:
            raise self.corrupt(_listed(wrong))
        return found

    def code(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise self.corrupt(f"gives '{key}' the unknown type {kind}")
        return _SCALARS[kind]

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), "a number"))[0]

    def string(self, longest: int) -> str:
        length = int(self.scalar("Q"))
        if length > longest:
            raise self.corrupt(f"claims a text of {length} bytes")
        try:
            return self.take(length, "a text").decode("utf-8")
        except UnicodeDecodeError:
            raise self.corrupt("holds a text that is not UTF-8") from None

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.place:
            raise self.corrupt(f"ends inside {what}")
        self.place += count
        taken = self.file.read(count)
        if len(taken) < count:
            raise self.corrupt(f"ends inside {what}")
        return taken

    def corrupt(self, message: str) -> CorruptError:
        return CorruptError(
            f"{message} (near byte {self.place}).", path=str(self.path), rule="a GGUF file that is whole", hint="Copy the file again."
        )


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: `shape` with rows first, `type` a key of `BLOCKS`; `pieces()` gives its bytes, some at a time."""

    name: str
    shape: tuple[int, ...]
    type: str
    pieces: Callable[[], Iterable[bytes]]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        _, block, width = BLOCKS[self.type]
        return math.prod(self.shape) // block * width


def write_gguf_file(path: Path, metadata: Mapping[str, Any], tensors: Sequence[Entry]) -> None:
    """A GGUF file of version 3, replaced as a whole. Whole numbers are written as u32 (below 0: i32), others as f32; a list of whole
    numbers as i32."""
    header = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    header += [_text(key) + _typed(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        number = BLOCKS[tensor.type][0]
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        header.append(_text(tensor.name) + shape + struct.pack("<IQ", number, offset))
        offset = _up(offset + tensor.size, _ALIGNMENT)
    size = sum(map(len, header))
    header.append(bytes(-size % _ALIGNMENT))
    files.require_space(path, size + offset)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with files.telling_space(path):
            with temporary.open("wb") as file:
                file.writelines(header)
                for tensor in tensors:
                    begun = file.tell()
                    file.writelines(tensor.pieces())
                    assert file.tell() - begun == tensor.size, tensor.name
                    file.write(bytes(-tensor.size % _ALIGNMENT))
            os.chmod(temporary, 0o644)
            files.sync(temporary)
            os.replace(temporary, path)
            files.sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        kind = _STRING if isinstance(value[0], str) else 6 if isinstance(value[0], float) else 5
        head = struct.pack("<IIQ", _ARRAY, kind, len(value))
        return head + (b"".join(map(_text, value)) if kind == _STRING else struct.pack(f"<{len(value)}{_SCALARS[kind]}", *value))
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind = 7 if isinstance(value, bool) else 6 if isinstance(value, float) else 4 if value >= 0 else 5
    return struct.pack(f"<I{_SCALARS[kind]}", kind, value)


def _overlaps(tensors: list[GgufTensor], data: int, size: int, alignment: int) -> list[str]:
    """Tensors follow one another with nothing but padding between them, up to the end of the file."""
    wrong, end, before = [], data, "the header"
    for tensor in tensors:
        if tensor.start < end:
            wrong.append(f"{tensor.name!r} overlaps {before}")
        elif tensor.start >= _up(end, alignment) + alignment:
            wrong.append(f"{tensor.start - end} bytes before {tensor.name!r} belong to no tensor")
        end, before = max(end, tensor.start + tensor.size), repr(tensor.name)
    if size > _up(end, alignment):
        wrong.append(f"{size - end} bytes at the end belong to no tensor")
    return wrong


def _listed(wrong: list[str], most: int = 12) -> str:
    more = f"; and {len(wrong) - most} more" if len(wrong) > most else ""
    return "; ".join(wrong[:most]) + more


def _up(number: int, alignment: int) -> int:
    return (number + alignment - 1) // alignment * alignment
