"""Near-duplicate texts: which pairs share so many character 5-grams that one gives the other away.

Candidates come from MinHash signatures (rensa) cut into bands; each is then compared exactly, since a signature alone would
join a quarter of all good texts. The bands are chosen so that a pair at the threshold is found with 99.5 %, a closer one surely.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

SHINGLE = 5
PERMUTATIONS = 128
RECALL = 0.995
CROWD = 64  # texts in one bucket that are all compared with each other; in a larger crowd each with its neighbours
_APOSTROPHES = re.compile(r"['’‘`´]")
_NOT_LETTERS = re.compile(r"[\W_]+")
# A Han character, a kana or a hangul syllable says about as much as a word: it stands alone, so that five
# characters of the spaced text hold two or three of them.
_WORD_LIKE = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])")


def normalised(text: str) -> str:
    """`text` as it is compared: compatible forms unified, case folded, punctuation and runs of white space made one space.

    A text of nothing but punctuation or emoji stands for itself, folded.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = _NOT_LETTERS.sub(" ", _APOSTROPHES.sub("", folded)).strip()
    return letters or " ".join(folded.split())


def shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Character 5-grams of the normalised `texts` as sets: hashes (uint64, ascending in each row) and row offsets.

    The hashes have as many bits as the row number leaves of 64: 40 for 16 million texts.
    """
    spaced = [" " + " ".join(_WORD_LIKE.sub(r" \1 ", normalised(text)).split()).ljust(SHINGLE - 2) + " " for text in texts]
    lengths = np.fromiter(map(len, spaced), np.int64, len(spaced))
    characters = np.frombuffer("".join(spaced).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = max(0, len(characters) - SHINGLE + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(SHINGLE if count else 0):
        hashes *= np.uint64(0x100000001B3)
        hashes += characters[place : place + count]
        hashes = _mixed(hashes)
    row = np.repeat(np.arange(len(spaced), dtype=np.uint64), lengths)
    inside = row[:count] == row[len(row) - count :]  # no shingle reaches into the next text
    bits = np.uint64(_hash_bits(len(spaced)))
    keys = np.sort((row[:count][inside] << bits) | (hashes[inside] >> (np.uint64(64) - bits)))
    keys = keys[np.insert(keys[1:] != keys[:-1], 0, True)] if len(keys) else keys
    offsets = np.searchsorted(keys, np.arange(len(spaced) + 1, dtype=np.uint64) << bits)
    return keys & ((np.uint64(1) << bits) - np.uint64(1)), offsets


def similar_pairs(texts: Sequence[str], threshold: float, seed: int = 0) -> np.ndarray:
    """Every pair of `texts` whose shingle sets have a Jaccard of at least `threshold`: (pairs, 2), left < right.

    Texts that are equal once normalised should be given once: they would all be paired with each other.
    `seed` chooses the permutations: pairs that one seed misses (under 0.5 % of those at the threshold) another finds.
    """
    members, offsets = shingles(texts)
    sets: dict[int, frozenset[int]] = {}

    def set_of(row: int) -> frozenset[int]:
        if row not in sets:
            sets[row] = frozenset(members[offsets[row] : offsets[row + 1]].tolist())
        return sets[row]

    found = []
    for left, right in _candidates(members, offsets, threshold, seed):
        a, b = set_of(left), set_of(right)
        shared = len(a & b)
        if shared >= threshold * (len(a) + len(b) - shared) - 1e-9:
            found.append((left, right))
    return np.array(found, np.int64).reshape(-1, 2)


def clusters(texts: Sequence[str], threshold: float) -> np.ndarray:
    """The cluster of each text, numbered by first appearance: texts joined by chains of similar pairs, or equal when normalised."""
    keys = [normalised(text) for text in texts]
    first: dict[str, int] = {}
    unique = np.fromiter((first.setdefault(key, len(first)) for key in keys), np.int64, len(keys))
    joined = Joined(len(first))
    for left, right in similar_pairs(list(first), threshold):
        joined.join(int(left), int(right))
    roots = [joined.root(int(number)) for number in unique]
    numbers: dict[int, int] = {}
    return np.fromiter((numbers.setdefault(root, len(numbers)) for root in roots), np.int64, len(roots))


class Joined:
    """Disjoint sets over 0 … count-1; a join may be refused when it would make a set heavier than allowed."""

    def __init__(self, count: int, limit: float = float("inf")) -> None:
        self._parent = list(range(count))
        self.size = [1] * count
        self.limit = limit

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

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
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    return values


def _hash_bits(rows: int) -> int:
    return 64 - max(1, rows.bit_length())


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and rows a band: the most rows at which a pair at the threshold still agrees on some band with the wanted recall."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def _candidates(members: np.ndarray, offsets: np.ndarray, threshold: float, seed: int) -> Iterator[tuple[int, int]]:
    """Pairs of rows whose signatures agree on a whole band, each once."""
    from rensa import RMinHash

    count = len(offsets) - 1
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(members, offsets.astype(np.uint64), PERMUTATIONS, seed)
    signatures = np.array(matrix.to_rows(), dtype=np.uint64)  # (texts, permutations)
    bands, rows = _bands(threshold)
    found = []
    for band in range(bands):
        key = np.zeros(count, np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            key = _mixed(key * np.uint64(0x100000001B3) + signatures[:, column])
        order = np.argsort(key)
        key = key[order]
        for step in range(1, CROWD):  # each text with the one `step` places further in its bucket
            same = np.flatnonzero(key[step:] == key[:-step])
            if not len(same):
                break
            left, right = order[same], order[same + step]
            found.append(np.minimum(left, right) * count + np.maximum(left, right))
    for pair in np.unique(np.concatenate(found)).tolist() if found else []:
        yield divmod(pair, count)
