"""Weights on disk as safetensors: one file, or several with an index. What a model expects is compared with what the files say
before a number is read, and all that is wrong is told at once. Written is one file, a tensor at a time.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib")
_READ = ("F32", "BF16", "F16")
_LARGEST_HEADER = 1 << 22  # bytes; a file of 20,000 tensors has half of it
_WHOLE = ("U8", "I8", "I16", "I32", "I64")
_SHOWN = 12  # troubles in one message
# Buffers that older versions of transformers saved beside the weights, and a head that is the table of the embeddings.
_BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$|\bh\.\d+\.attn\.(masked_)?bias$")
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Description:
    """What was found where a model was read.

    `format`: "Hugging Face directory" or "GGUF file"; `architecture`: the name it has there; `dtypes`: how many tensors of each type;
    `ignored`: entries and tensors that were not followed; `notes`: what else is to be told.
    """

    format: str
    architecture: str
    dtypes: Mapping[str, int]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The shortest of float32, bfloat16 and float16 that holds every weight as it is."""
        return {"F16": "float16", "BF16": "bfloat16"}.get("".join(self.dtypes), "float32")


class Stored(Mapping[str, "Tensor"]):
    """The tensors of a directory by name, each read when it is asked for; ``with`` it, its files are open.

    `shapes` and `dtypes` (safetensors' words: F32, BF16, F16) are known from the headers. Tensors that were read and hold numbers
    that are not finite are collected; `refuse_if_not_finite` tells all of them. `CorruptError` for a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / (INDEX if (self.folder / INDEX).is_file() and not (self.folder / WEIGHTS).is_file() else WEIGHTS)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._open, self._files, self._not_finite = ExitStack(), dict[str, Any](), list[str]()

    def __enter__(self) -> Stored:
        try:
            self._read_headers()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __getitem__(self, name: str) -> Tensor:
        import torch
        from safetensors import SafetensorError

        try:
            tensor: Tensor = self._files[name].get_tensor(name)
        except SafetensorError as error:
            raise self._damaged(self.path, error) from None
        # Smallest and largest tell of NaN and infinity without a copy of the numbers.
        if tensor.numel() and not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
            self._not_finite.append(name)
        return tensor

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors there are of each type."""
        return {kind: list(self.dtypes.values()).count(kind) for kind in sorted(set(self.dtypes.values()))}

    @property
    def numbers(self) -> int:
        """How many numbers the files hold."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def refuse_if_not_finite(self) -> None:
        refuse(self.path, [f"{name} holds numbers that are not finite" for name in self._not_finite], "finite weights")

    def refuse_other(self, expected: Mapping[str, tuple[int, ...]], spare: Iterable[str] = ()) -> None:
        """Raise `CorruptError` with all that is missing, too much, of another shape, or of a type that is not read."""
        refuse(self.path, [*differences(expected, self.shapes, spare), *self._other_types()], "the tensors of config.json")

    def refuse_unreadable(self) -> None:
        """Raise `CorruptError` for tensors of a type whose numbers cannot be looked at; whole numbers are no weights, and harmless."""
        wrong = [f"{name} holds {kind}" for name, kind in self.dtypes.items() if kind not in (*_READ, *_WHOLE)]
        refuse(self.path, wrong, f"{', '.join(_READ)}, or whole numbers")

    def _other_types(self) -> list[str]:
        return [f"{name} holds {kind}, not {', '.join(_READ)}" for name, kind in self.dtypes.items() if kind not in _READ]

    def _read_headers(self) -> None:
        from safetensors import SafetensorError, safe_open

        for path, listed in self._names().items():
            _refuse_doubled(path)
            try:
                file = self._open.enter_context(safe_open(path, framework="pt", device="cpu"))
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            except (SafetensorError, OSError) as error:
                raise self._damaged(path, error) from None
            wrong = [f"lacks {name}, which the index places there" for name in sorted((listed or set()) - found.keys())]
            wrong += [f"has {name}, which the index does not place there" for name in sorted(found.keys() - (listed or found.keys()))]
            refuse(path, wrong, "the tensors of the index")
            for name, part in found.items():
                self._files[name], self.shapes[name], self.dtypes[name] = file, tuple(part.get_shape()), str(part.get_dtype())

    def _names(self) -> dict[Path, set[str] | None]:
        """The files, each with the tensors that the index places in it; none: whatever it holds."""
        if self.path.name == WEIGHTS:
            if not self.path.is_file():
                raise self._missing()
            return {self.path: None}
        index = files.read_json(self.path)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places:
            raise CorruptError("holds no weight_map.", path=str(self.path), rule="an index of safetensors files")
        found: dict[Path, set[str] | None] = {}
        wrong = []
        for tensor, file in places.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                wrong.append(f"places {tensor} in {file!r}, which is no safetensors file of this folder")
            elif not (self.folder / file).is_file():
                wrong.append(f"places {tensor} in {file}, which is missing")
            else:
                names = found.setdefault(self.folder / file, set())
                assert names is not None
                names.add(tensor)
        refuse(self.path, wrong, "files of this folder")
        return found

    def _missing(self) -> ArtifactError:
        pickled = sorted(file.name for file in self.folder.iterdir() if file.suffix in _PICKLED) if self.folder.is_dir() else []
        return ArtifactError(
            f"is missing{f' ({pickled[0]} is a pickle, which can run code and is never read)' if pickled else ''}.",
            path=str(self.path), rule="weights as safetensors",
            hint="Convert the weights to safetensors." if pickled else None,
        )  # fmt: skip

    def _damaged(self, path: Path, error: Exception) -> CorruptError:
        return _not_safetensors(path, error)


def _not_safetensors(path: Path, error: Exception) -> CorruptError:
    return CorruptError(
        f"is not a safetensors file: {error}.", path=str(path), rule="valid safetensors", hint="Copy it again, or train again."
    )


def _refuse_doubled(path: Path) -> None:
    """A header that gives a name twice means one tensor to one reader and another to the next; the library takes the last."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LARGEST_HEADER, path.stat().st_size):
                raise ValueError(f"it claims a header of {length} bytes")
            json.loads(file.read(length), object_pairs_hook=_once)
    except (ValueError, OSError, RecursionError) as error:
        raise _not_safetensors(path, error) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"it gives {Counter(name for name, _ in pairs).most_common(1)[0][0]!r} twice")
    return found


def write(tensors: Mapping[str, Tensor], path: Path, dtype: str = "float32") -> None:
    """One safetensors file, replaced as a whole; numbers are rounded to `dtype` (float32, bfloat16 or float16).

    Takes memory for one tensor. The layout is the library's: tensors by name, the header padded to eight bytes.
    """
    import torch

    kind, wide = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        begin, end = end, end + wide * tensors[name].numel()
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    files.require_space(path, end + len(text))
    temporary = path.with_name(f".{path.name}.new")
    try:
        with files.telling_space(path):
            with temporary.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in sorted(tensors):
                    plain = tensors[name].detach().to("cpu", getattr(torch, dtype)).contiguous()
                    file.write(plain.flatten().view(torch.uint8).numpy().data)
            os.chmod(temporary, 0o644)
            files.sync(temporary)
            os.replace(temporary, path)
            files.sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def spelling(expected: Iterable[str], found: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The name that each expected tensor has in a file (without its first word where the model was saved without its head), and the
    tensors that a file may have too much: buffers, and a head beside tied embeddings."""
    names = set(found)
    spelt = {name: name if name in names or name.partition(".")[2] not in names else name.partition(".")[2] for name in expected}
    more = names - set(spelt.values())
    return spelt, sorted(name for name in more if _BUFFERS.search(name) or name == HEAD)


def differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], spare: Iterable[str] = ()
) -> list[str]:
    """What `found` lacks, has too much (but for `spare`), and has in another shape."""
    wrong = [f"lacks {name}" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"has the unknown tensor {name}" for name in sorted(found.keys() - expected.keys() - set(spare))]
    return wrong + [
        f"{name} is {_times(found[name])}, not {_times(shape)}" for name, shape in expected.items() if found.get(name, shape) != shape
    ]


def refuse(path: Path, wrong: list[str], rule: str) -> None:
    """Raise `CorruptError` with the troubles, if there are any."""
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CorruptError(f"{'; '.join(wrong[:_SHOWN])}{more}.", path=str(path), value="; ".join(wrong), rule=rule)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
