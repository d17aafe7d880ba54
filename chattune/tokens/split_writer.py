"""Writing a split piece by piece, so that no corpus has to fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from chattune.core import files
from chattune.tokens.token_set import TokenSplit, mapped


class SplitWriter:
    """Appends rendered dialogs to the three arrays of one split."""

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

    def append(self, rendered: Iterable[tuple[list[int], list[float]]]) -> TokenSplit:
        """Add dialogs, each as `Template.render` gives it; gives the piece that was added."""
        piece = TokenSplit.of(rendered, {})
        binary = (piece.weights == 0) | (piece.weights == 1)
        if self._weights.type == np.uint8 and not binary.all():
            self._weights.widen(np.dtype(np.float32))
        self._offsets.append(piece.offsets[1:] + self._ids.length)
        self._ids.append(piece.ids)
        self._weights.append(piece.weights)
        return piece

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
        written, self.type, self.length = mapped(narrow), type, 0
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
