"""Near-duplicate texts: which pairs share so many character 5-grams, or four of five words, that one gives the other away.

Candidates come from MinHash signatures (rensa) cut into bands; each is then compared exactly, since a signature alone would
join a quarter of all good texts. The bands are chosen so that a pair at the threshold is found with 99.5 %, a closer one surely.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import re
import tempfile
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, overload

import numpy as np

from chattune.core.executors import INLINE, Executor

SHINGLE = 5
SAME_WORDS = 0.8  # Jaccard of two texts' words from which they are near-duplicates whatever the threshold for 5-grams
PERMUTATIONS = 128
RECALL = 0.995
_BLOCK = 1 << 16  # texts that are held in memory at once
_PAIRS = 1 << 13  # pairs that are compared at once
_FEW = 1 << 17  # texts that are compared in one go
_CHARACTERS = 1 << 24  # in them, at the most; in a block a sixteenth of it
_TOKEN = 40  # bits of a member that signatures are made of
_SIGNED = 1 << 13  # texts whose signatures are held as numbers of Python at once
CROWD = 64  # texts in one bucket that are all compared with each other; in a larger crowd each with its neighbours
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, bits well spread: 2^64 over the golden ratio
_APOSTROPHES = re.compile(r"['’‘`´]")
_NOT_LETTERS = re.compile(r"[\W_]+")
_ASCII = {code: chr(code).lower() if chr(code).isalnum() else None if chr(code) in "'`" else " " for code in range(128)}
# A Han character, a kana or a hangul syllable says about as much as a word: it stands alone, so that five
# characters of the spaced text hold two or three of them.
_WORD_LIKE = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])")

SetsOf = Callable[[Sequence[str]], "Sets"]


def normalised(text: str) -> str:
    """`text` as it is compared: compatible forms unified, case folded, punctuation and runs of white space made one space.

    A text of nothing but punctuation or emoji stands for itself, folded.
    """
    if text.isascii():  # the same, several times faster
        return " ".join(text.translate(_ASCII).split()) or " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = _NOT_LETTERS.sub(" ", _APOSTROPHES.sub("", folded)).strip()
    return letters or " ".join(folded.split())


def spaced(text: str) -> str:
    """The normalised `text` with every Han character, kana and hangul syllable as a word of its own."""
    return _spread(normalised(text))


def _spread(plain: str) -> str:
    return plain if plain.isascii() else " ".join(_WORD_LIKE.sub(r" \1 ", plain).split())


def shingles(texts: Sequence[str]) -> Sets:
    """Character 5-grams of spaced texts, with a space at both ends."""
    padded = [" " + text.ljust(SHINGLE - 2) + " " for text in texts]
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    characters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = max(0, len(characters) - SHINGLE + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(SHINGLE if count else 0):
        hashes *= _PRIME
        hashes += characters[place : place + count]
    row = np.repeat(np.arange(len(padded)), lengths)
    inside = row[:count] == row[len(row) - count :]  # no shingle reaches into the next text
    return Sets.of(row[:count][inside], _mixed(hashes[inside]), len(padded))


def words(texts: Sequence[str]) -> Sets:
    """The words of spaced texts, whatever their order."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    # Each text ends with a space, so that a word is what stands between two.
    characters = np.frombuffer("".join(f"{text} " for text in texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    row = np.repeat(np.arange(len(texts)), lengths + 1)
    space = characters == ord(" ")
    begins = np.flatnonzero(~space & np.concatenate([[True], space[:-1]]))
    ends = np.flatnonzero(space & np.concatenate([[False], ~space[:-1]]))
    # A word's hash is Σ cᵢ·pⁱ from its first character on, from sums over all of the text (modulo 2^64, where odd p have inverses).
    powers = np.cumprod(np.full(len(characters) + 1, _PRIME))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(characters * powers[1:])])
    inverse = np.cumprod(np.full(len(characters) + 1, np.uint64(pow(int(_PRIME), -1, 1 << 64))))
    return Sets.of(row[begins], _mixed((sums[ends] - sums[begins]) * inverse[begins]), len(texts))


@dataclass(frozen=True)
class Sets:
    """One set of hashes for each text: row i is ``members[offsets[i]:offsets[i+1]]``, ascending (uint64).

    The hashes have `bits` bits, as many as the row number left of 64: 40 for 16 million texts.
    """

    members: np.ndarray
    offsets: np.ndarray
    bits: int

    @classmethod
    def of(cls, rows: np.ndarray, hashes: np.ndarray, count: int) -> Sets:
        bits = np.uint64(64 - max(1, count.bit_length()))
        keys = np.sort((rows.astype(np.uint64) << bits) | (hashes >> (np.uint64(64) - bits)))
        keys = keys[np.insert(keys[1:] != keys[:-1], 0, True)] if len(keys) else keys
        offsets = np.searchsorted(keys, np.arange(count + 1, dtype=np.uint64) << bits)
        return cls(keys & ((np.uint64(1) << bits) - np.uint64(1)), offsets, int(bits))

    def tokens(self) -> np.ndarray:
        """The members by their first 40 bits: the same for equal members, however many other texts stand in these sets."""
        found: np.ndarray = self.members >> np.uint64(max(0, self.bits - _TOKEN))
        return found

    def shared(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """How many members row ``left[i]`` has in common with row ``right[i]``, for each i."""
        a, b = self.some(left), self.some(right)
        rows = [np.repeat(np.arange(len(left)), np.diff(own.offsets)) for own in (a, b)]
        # Both sides of a pair under its number: a member that stands in both is there twice.
        bits = np.uint64(64 - max(1, len(left).bit_length()))
        least = np.uint64((1 << 64) - 1) >> (np.uint64(64) - bits)
        keys = np.concatenate([(row.astype(np.uint64) << bits) | (own.members & least) for row, own in zip(rows, (a, b), strict=True)])
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]] >> bits
        return np.bincount(twice.astype(np.int64), minlength=len(left))

    def some(self, rows: np.ndarray) -> Sets:
        """The sets of some rows."""
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        return Sets(self.members[np.repeat(self.offsets[rows], sizes) + within], offsets, self.bits)


class TextFile(Sequence[str]):
    """Texts that lie in a temporary file, each read when it is asked for. `lengths`: (n,) int64 characters of each."""

    def __init__(self, content: mmap.mmap | bytes, starts: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> None:
        self._content, self._starts, self._ends, self.lengths = content, starts, ends, lengths

    @staticmethod
    @contextlib.contextmanager
    def writing(folder: Path | None = None) -> Iterator[_Writing]:
        """What takes one text after the other; afterwards they are its `texts`. `folder`: where the file lies, with no name."""
        with tempfile.TemporaryFile(dir=folder) as file:
            put = _Writing(file)
            yield put
            file.flush()
            ends = np.array(put.ends, np.int64)
            content: mmap.mmap | bytes = b""
            if put.place:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # holds the file open on its own
            put.texts = TextFile(content, np.concatenate([[0], ends[:-1]]), ends, np.array(put.lengths, np.int64))

    def some(self, places: np.ndarray) -> TextFile:
        """The texts at some places, in that order."""
        return TextFile(self._content, self._starts[places], self._ends[places], self.lengths[places])

    def equal(self) -> list[list[int]]:
        """The places of each set of equal texts."""
        digests = np.fromiter(
            (int.from_bytes(hashlib.blake2b(self._bytes(place), digest_size=8).digest(), "little") for place in range(len(self))),
            np.uint64, len(self),
        )  # fmt: skip
        order = np.argsort(digests, kind="stable")
        edges = np.flatnonzero(np.concatenate([[True], digests[order][1:] != digests[order][:-1], [True]]))
        return [order[a:b].tolist() for a, b in pairwise(edges.tolist()) if b - a > 1] if len(self) else []

    def _bytes(self, place: int) -> bytes:
        return self._content[self._starts[place] : self._ends[place]]

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._bytes(place).decode("utf-8", "surrogatepass")

    def __len__(self) -> int:
        return len(self._starts)


class _Writing:
    """Writes texts one behind the other."""

    texts: TextFile

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.place = file, 0
        self.ends, self.lengths = array("q"), array("q")

    def __call__(self, text: str) -> None:
        self.place += self._file.write(text.encode("utf-8", "surrogatepass"))
        self.ends.append(self.place)
        self.lengths.append(len(text))


def similar_pairs(texts: Sequence[str], threshold: float, seed: int = 0, executor: Executor = INLINE) -> np.ndarray:
    """(pairs, 2) int64, left < right, sorted: all with a Jaccard of `threshold` or more in character 5-grams, or of 0.8 in words.

    `texts`: normalised, each once, since those that are equal would be paired with all. They are looked at in blocks and may lie on a
    disk. `seed` chooses the permutations: pairs that one seed misses (under 0.5 % of those at the threshold) another finds. Where there
    are many texts, the `executor` does what can be done block by block.
    """
    ways = ((shingles, threshold), (words, SAME_WORDS))
    if len(texts) <= _FEW and _characters(texts) <= _CHARACTERS:
        plain = [_spread(text) for text in texts]
        with ThreadPoolExecutor(len(ways)) as together:  # sorting and signing leave other threads free
            found = list(together.map(lambda way: _pairs_of(way[0](plain), way[1], seed), ways))
    else:
        found = [_pairs(texts, sets_of, least, seed, executor if len(texts) > _FEW else INLINE) for sets_of, least in ways]
    codes = np.unique(np.concatenate(found))
    return np.stack(np.divmod(codes, max(1, len(texts))), axis=1)


def _pairs_of(sets: Sets, threshold: float, seed: int) -> np.ndarray:
    """Pairs of sets that are all in memory, with a Jaccard of at least `threshold`, as left · count + right, ascending."""
    count = len(sets.offsets) - 1
    bands, rows = _bands(threshold)
    # Most texts share no band with another. Only the others' signatures leave rensa as numbers of Python: the slow part.
    crowd = np.flatnonzero(_flags(sets, threshold, bands, rows, seed))
    keys = _keys(sets.some(crowd), bands, rows, seed)
    candidates = _met(iter(keys), crowd, count)
    pieces = [candidates[begin : begin + _PAIRS] for begin in range(0, len(candidates), _PAIRS)]
    alike = [np.zeros(0, bool), *(_alike(sets, *np.divmod(piece, count), threshold) for piece in pieces)]
    found: np.ndarray = candidates[np.concatenate(alike)]
    return found


def _pairs(texts: Sequence[str], sets_of: SetsOf, threshold: float, seed: int, executor: Executor) -> np.ndarray:
    """The same for any number of texts, looked at block by block."""
    candidates = _candidates(texts, sets_of, threshold, seed, executor)

    def blocks() -> Iterator[tuple[list[str], np.ndarray]]:
        for begin in range(0, len(candidates), _PAIRS):
            own, place = np.unique(np.concatenate(np.divmod(candidates[begin : begin + _PAIRS], len(texts))), return_inverse=True)
            yield [texts[number] for number in own.tolist()], place

    alike = [np.zeros(0, bool), *executor.map(_Alike(sets_of, threshold), blocks())]
    found: np.ndarray = candidates[np.concatenate(alike)]
    return found


@dataclass(frozen=True)
class _Alike:
    """Which pairs of some texts are as similar as that: `place` (2 · pairs,) says which texts are the left and then the right ones."""

    sets_of: SetsOf
    threshold: float

    def __call__(self, block: tuple[list[str], np.ndarray]) -> np.ndarray:
        texts, place = block
        left, right = np.split(place, 2)
        return _alike(self.sets_of([_spread(text) for text in texts]), left, right, self.threshold)


def _alike(sets: Sets, left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
    """(pairs,) bool: whether set ``left[i]`` and set ``right[i]`` have a Jaccard of at least `threshold`."""
    shared = sets.shared(left, right)
    sizes = np.diff(sets.offsets)
    union = sizes[left] + sizes[right] - shared
    found: np.ndarray = (shared > 0) & (shared >= threshold * union - 1e-9)
    return found


def clusters(texts: Sequence[str], threshold: float) -> np.ndarray:
    """The cluster of each text, numbered by first appearance: texts joined by chains of similar pairs, or equal when normalised."""
    keys = [normalised(text) for text in texts]
    first: dict[str, int] = {}
    unique = np.fromiter((first.setdefault(key, len(first)) for key in keys), np.int64, len(keys))
    joined = Joined(len(first))
    for pair in similar_pairs(list(first), threshold).tolist():
        joined.join(*pair)
    roots = [joined.root(int(number)) for number in unique]
    numbers: dict[int, int] = {}
    return np.fromiter((numbers.setdefault(root, len(numbers)) for root in roots), np.int64, len(roots))


class Joined:
    """Disjoint sets over 0 … count-1; a join may be refused when it would make a set heavier than allowed."""

    def __init__(self, count: int, limit: float = float("inf")) -> None:
        self._parent = array("q", range(count))
        self.size = array("q", [1]) * count
        self.limit = limit

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def roots(self) -> np.ndarray:
        """(count,) int64: the root of each item."""
        parent = np.array(self._parent, np.int64)
        while not np.array_equal(above := parent[parent], parent):
            parent = above
        return parent

    def join(self, *items: int) -> bool:
        """One set of all the sets that hold `items`; False, and nothing done, when it would exceed the limit."""
        roots = sorted({self.root(item) for item in items})
        total = sum(self.size[root] for root in roots)
        if len(roots) > 1:
            if total > self.limit:
                return False
            for root in roots[1:]:
                self._parent[root] = roots[0]
            self.size[roots[0]] = total
        return True


def _mixed(values: np.ndarray) -> np.ndarray:
    # The finaliser of splitmix64 (Steele et al. 2014): spreads each bit over the word.
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and rows a band: the most rows at which a pair at the threshold still agrees on some band with the wanted recall."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def _candidates(texts: Sequence[str], sets_of: SetsOf, threshold: float, seed: int, executor: Executor) -> np.ndarray:
    """Pairs of texts whose signatures agree on a whole band, each once, as left · count + right, ascending."""
    bands, rows = _bands(threshold)
    count = len(texts)
    with tempfile.TemporaryFile() as file:  # band behind band: of all of them at once only one block's keys are in memory
        begin = 0
        for own in executor.map(_Keys(sets_of, bands, rows, seed), _blocks(texts)):
            for band in range(bands):
                file.seek(8 * (band * count + begin))
                file.write(own[band].tobytes())
            begin += own.shape[1]
        file.flush()

        def whole() -> Iterator[np.ndarray]:
            for band in range(bands):
                file.seek(8 * band * count)
                yield np.frombuffer(file.read(8 * count), np.uint64)

        return _met(whole(), np.arange(count), count)


def _met(bands: Iterator[np.ndarray], numbers: np.ndarray, count: int) -> np.ndarray:
    """Pairs of `numbers` whose keys are equal in one of the `bands`, each once, as left · count + right, ascending."""
    found = [np.empty(0, np.int64)]
    for keys in bands:
        order = np.argsort(keys, kind="stable")
        key = keys[order]
        for step in range(1, CROWD):  # each text with the one `step` places further in its bucket
            same = np.flatnonzero(key[step:] == key[:-step])
            if not len(same):
                break
            left, right = numbers[order[same]], numbers[order[same + step]]
            found.append(np.minimum(left, right) * count + np.maximum(left, right))
        found = [np.unique(np.concatenate(found))]
    return found[0]


def _characters(texts: Sequence[str]) -> int:
    return int(texts.lengths.sum()) if isinstance(texts, TextFile) else sum(map(len, texts))


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts, as many at once as memory is meant for."""
    block: list[str] = []
    characters = 0
    for number in range(len(texts)):
        block.append(texts[number])
        characters += len(block[-1])
        if characters > _CHARACTERS // 16 or len(block) == _BLOCK:
            yield block
            block, characters = [], 0
    if block:
        yield block


@dataclass(frozen=True)
class _Keys:
    """(bands, texts) uint64 of some texts: what each one's signature says in each band."""

    sets_of: SetsOf
    bands: int
    rows: int
    seed: int

    def __call__(self, texts: list[str]) -> np.ndarray:
        return _keys(self.sets_of([_spread(text) for text in texts]), self.bands, self.rows, self.seed)


def _keys(sets: Sets, bands: int, rows: int, seed: int) -> np.ndarray:
    """(bands, sets) uint64: what the signature of each set says in each band."""
    from rensa import RMinHash

    tokens, offsets = sets.tokens(), sets.offsets.astype(np.uint64)
    keys = np.zeros((bands, len(offsets) - 1), np.uint64)
    factors = _mixed(np.arange(1, rows + 1, dtype=np.uint64) * _PRIME) | np.uint64(1)
    for begin in range(0, keys.shape[1], _SIGNED):
        own = offsets[begin : begin + _SIGNED + 1]
        members = tokens[own[0] : own[-1]]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(members, own - own[0], bands * rows, seed)
        signatures = np.array(matrix.to_rows(), dtype=np.uint64).reshape(-1, bands, rows)
        # 32 bits each, times odd factors, added up modulo 2^64: equal by chance about once in 2^32 pairs (multilinear hashing)
        keys[:, begin : begin + _SIGNED] = _mixed((signatures * factors).sum(2)).T
    return keys


def _flags(sets: Sets, threshold: float, bands: int, rows: int, seed: int) -> list[bool]:
    """Which sets share a band with another one."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold, bands * rows, bands)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(sets.tokens(), sets.offsets.astype(np.uint64), bands * rows, seed)
    flags: list[bool] = index.query_duplicate_flags_matrix_one_shot(matrix)
    return flags
