"""`TokenSet`: what `prepare` gives: tokenizer, chat template, and each split as memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from chattune.core import files
from chattune.core.artifact import Artifact
from chattune.core.errors import CorruptError, UnknownName, did_you_mean
from chattune.dialogs.artifact import SPLITS

if TYPE_CHECKING:
    import numpy as np

    from chattune.tokens.template import Template
    from chattune.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenSplit:
    """The dialogs of one split, in the order of `Dialogs`: dialog i is ``ids[offsets[i]:offsets[i + 1]]``.

    `ids`: uint16 or uint32; `weights`: the loss weight of each id as a target, uint8 where all are 0 or 1, else float32;
    `offsets`: int64, one more than there are dialogs; `control`: name → id, of which ``pad`` and ``end`` (of a turn) are always there.
    """

    ids: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    control: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def longest(self) -> int:
        """Ids of the longest dialog."""
        import numpy as np

        return int(np.diff(self.offsets).max(initial=0))

    @classmethod
    def of(cls, rendered: Iterable[tuple[list[int], list[float]]], control: Mapping[str, int]) -> Self:
        """A split in memory, from what `Template.render` gives for each dialog."""
        import numpy as np

        ids: list[int] = []
        weights: list[float] = []
        offsets = [0]
        for dialog, weight in rendered:
            ids += dialog
            weights += weight
            offsets.append(len(ids))
        return cls(np.array(ids, np.uint32), np.array(weights, np.float32), np.array(offsets, np.int64), control)


class Pretrained(Artifact):
    """A run whose tokenizer and chat template others go on with: what a `Checkpoint` is to those who know no models."""

    stage: ClassVar[str] = "import"
    also: ClassVar[tuple[str, ...]] = ("train",)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from chattune.tokens.tokenizer import Tokenizer

        return Tokenizer.load(self.path)

    @cached_property
    def template(self) -> Template:
        return self.tokenizer.template()


class TokenSet(Artifact):
    """``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja`` and ``{split}/{ids,weights,offsets}.npy``."""

    stage: ClassVar[str] = "prepare"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from chattune.tokens.tokenizer import Tokenizer

        return Tokenizer.load(self.path)

    @cached_property
    def template(self) -> Template:
        return self.tokenizer.template(files.read_json(self.path / "summary.json")["token_set"]["targets"])

    def split(self, name: str) -> TokenSplit:
        """One of ``train``, ``validation``, ``test``; the arrays stay on the disk until they are read."""
        if name not in SPLITS:
            raise UnknownName(
                f"no split is called '{name}'.", value=name, rule=f"one of {', '.join(SPLITS)}", hint=did_you_mean(name, SPLITS)
            )
        ids, weights, offsets = (mapped(self.path / name / f"{array}.npy") for array in ("ids", "weights", "offsets"))
        if len(ids) != len(weights) or len(offsets) == 0 or offsets[-1] != len(ids):
            raise CorruptError("its arrays do not fit together.", path=str(self.path / name), rule="offsets that end where the ids end")
        return TokenSplit(ids, weights, offsets, self.tokenizer.control)


def mapped(path: Path) -> np.ndarray:
    """The array in a ``.npy`` file, left on the disk."""
    from zipfile import BadZipFile

    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise CorruptError("is missing.", path=str(path), rule="a file of every split", hint="Prepare the data again.") from None
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        # NumPy advises to unpickle what it does not know.
        said = "it is no array, or one of pickled objects, which are never read" if "pickle" in str(error) else error
        raise CorruptError(f"cannot be read: {said}.", path=str(path), rule="a NumPy array", hint="Prepare the data again.") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iuf":
        kind = f"{array.ndim} dimensions of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise CorruptError(f"holds {kind}.", path=str(path), rule="one row of numbers", hint="Prepare the data again.")
    return array
