"""`TokenSet`: what `prepare` gives: tokenizer, chat template, and each split as memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, ClassVar, Self

import numpy as np

from chattune.core import files
from chattune.core.artifact import Artifact
from chattune.core.errors import CorruptError, UnknownName, did_you_mean
from chattune.dialogs.artifact import SPLITS
from chattune.tokens.template import Template
from chattune.tokens.tokenizer import Tokenizer

SETTINGS = "prepared.json"


@dataclass(frozen=True)
class TokenSplit:
    """The dialogs of one split, in the order of `Dialogs`: dialog i is ``ids[offsets[i]:offsets[i + 1]]``.

    `ids`: uint16 or uint32; `weights`: the loss weight of each id as a target, uint8 where all are 0 or 1, else float32;
    `offsets`: int64, one more than there are dialogs; `control`: name → id.
    """

    ids: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    control: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, rendered: Iterable[tuple[list[int], list[float]]], control: Mapping[str, int]) -> Self:
        """A split in memory, from what `Template.render` gives for each dialog."""
        ids: list[int] = []
        weights: list[float] = []
        offsets = [0]
        for dialog, weight in rendered:
            ids += dialog
            weights += weight
            offsets.append(len(ids))
        return cls(np.array(ids, np.uint32), np.array(weights, np.float32), np.array(offsets, np.int64), control)


class TokenSet(Artifact):
    """``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja`` and ``{split}/{ids,weights,offsets}.npy``."""

    stage: ClassVar[str] = "prepare"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.path)

    @cached_property
    def template(self) -> Template:
        return Template(self.tokenizer, files.read_json(self.path / SETTINGS)["targets"])

    def split(self, name: str) -> TokenSplit:
        """One of ``train``, ``validation``, ``test``; the arrays stay on the disk until they are read."""
        if name not in SPLITS:
            raise UnknownName(
                f"no split is called '{name}'.", value=name, rule=f"one of {', '.join(SPLITS)}", hint=did_you_mean(name, SPLITS)
            )
        ids, weights, offsets = (_mapped(self.path / name / f"{array}.npy") for array in ("ids", "weights", "offsets"))
        if len(ids) != len(weights) or len(offsets) == 0 or offsets[-1] != len(ids):
            raise CorruptError("its arrays do not fit together.", path=str(self.path / name), rule="offsets that end where the ids end")
        return TokenSplit(ids, weights, offsets, self.tokenizer.control)


class SplitWriter:
    """Writes one split piece by piece, so that no corpus has to fit into memory."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self.folder = folder
        self.type = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open = ExitStack()
        self._ids = self._open.enter_context(_GrowingArray(self.folder / "ids.npy", self.type))
        self._weights = self._open.enter_context(_GrowingArray(self.folder / "weights.npy", np.dtype(np.uint8)))
        self._offsets = self._open.enter_context(_GrowingArray(self.folder / "offsets.npy", np.dtype(np.int64)))
        self._offsets.append(np.zeros(1, np.int64))
        return self

    def append(self, rendered: Iterable[tuple[list[int], list[float]]]) -> None:
        """Add dialogs, each as `Template.render` gives it."""
        piece = TokenSplit.of(rendered, {})
        binary = (piece.weights == 0) | (piece.weights == 1)
        if self._weights.type == np.uint8 and not binary.all():
            self._weights.widen(np.dtype(np.float32))
        self._offsets.append(piece.offsets[1:] + self._ids.length)
        self._ids.append(piece.ids)
        self._weights.append(piece.weights)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)


class _GrowingArray:
    """A one-dimensional ``.npy`` file that is appended to; its header is written again at the end, in the same room."""

    def __init__(self, path: Path, type: np.dtype[np.generic]) -> None:
        self.path, self.type, self.length = path, type, 0

    def __enter__(self) -> Self:
        self._file: BinaryIO = self.path.open("wb")
        self._header()
        return self

    def append(self, values: np.ndarray) -> None:
        with files.telling_space(self.path):
            self._file.write(values.astype(self.type).tobytes())
        self.length += len(values)

    def widen(self, type: np.dtype[np.generic]) -> None:
        """Go on with a wider type: what is written so far is written again."""
        self.__exit__(None, None, None)
        narrow = self.path.rename(self.path.with_suffix(".narrow"))
        written, self.type, self.length = _mapped(narrow), type, 0
        self.__enter__()
        for start in range(0, len(written), 1 << 24):
            self.append(written[start : start + (1 << 24)])
        narrow.unlink()

    def _header(self) -> None:
        # NumPy leaves room in the header for the first axis to grow.
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": np.lib.format.dtype_to_descr(self.type), "fortran_order": False, "shape": (self.length,)}
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()


def _mapped(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise CorruptError("is missing.", path=str(path), rule="a file of every split", hint="Prepare the data again.") from None
    except (ValueError, OSError) as error:
        raise CorruptError(f"cannot be read: {error}.", path=str(path), rule="a NumPy array", hint="Prepare the data again.") from None
    return array
