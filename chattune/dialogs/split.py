"""Training, validation and test without leaks: what a test asks has not been asked in training.

A *question* is a user message that a reply follows. Dialogs that share a group, a question or a nearly equal question form a
cluster, and a cluster is never torn apart. In long chats nearly everything hangs together through "yes" and "haha", so
questions join in the order opening questions first, then from the rarest to the most common, and a join that would make a
cluster too large for training is refused and counted: only then do such common turns stand on both sides, and the reported
overlap says how many.

Which clusters go where follows from the seed and the content alone. Validation and test take small clusters, so that sources and
lengths of dialogs stand in them as in the whole as far as there are such clusters: the longest chats share something with others
and are trained on.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chattune.core.errors import DataError
from chattune.core.executors import INLINE, Executor
from chattune.core.seeds import generator
from chattune.dialogs.artifact import Stretch
from chattune.dialogs.dialog import Dialog
from chattune.dialogs.near_duplicates import Joined, TextFile, normalised, similar_pairs
from chattune.dialogs.shape import content_key, questions

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
LEAST_CLUSTERS = 10
DRAWS = 20
TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class Rules:
    """How to split: shares of the dialogs, the Jaccard from which questions are near-duplicates, what counts as a question.

    `question_length`: normalised characters from which a later question joins dialogs; the opening one always does. `executor`: where
    near-duplicates among many questions are sought; the result does not depend on it.
    """

    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    threshold: float = 0.7
    question_length: int = 1
    seed: int = 0
    executor: Executor = INLINE


@dataclass
class Look:
    """What the split sees of some dialogs, one after the other: ids, and what `Asked` and a summary of their sizes are made of.

    `texts` and `said`: questions in normal form and their digests, `lengths` of them for each dialog; `replies` and `prompts`: how many
    replies, and for each a number for everything said before it. `sizes`: for each dialog its messages, characters, those that are not
    white space, those that are Han.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    said: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    replies: array[int] = field(default_factory=lambda: array("q"))
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    keys: bytearray = field(default_factory=bytearray)
    groups: array[int] = field(default_factory=lambda: array("Q"))
    kinds: list[tuple[str, int]] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("I"))


def look(dialogs: Iterable[Dialog]) -> Look:
    """See some dialogs."""
    seen = Look()
    for dialog in dialogs:
        plain = {message.content: normalised(message.content) for message in dialog.messages}
        own = [plain[text] for text in questions(dialog)] or [plain[dialog.messages[0].content]]
        before = _prompts(dialog, plain)
        seen.ids.append(dialog.id)
        seen.texts += own
        seen.said.extend(_digest(text.encode("utf-8", "surrogatepass")) for text in own)
        seen.lengths.append(len(own))
        seen.replies.append(len(before))
        seen.prompts.extend(before)
        seen.keys += bytes.fromhex(content_key(dialog))
        seen.groups.append(0 if dialog.group is None else _digest(dialog.group.encode("utf-8", "surrogatepass")) | 1)
        seen.kinds.append((dialog.source, len(dialog.messages).bit_length()))
        seen.sizes.extend(_sizes(dialog))
    return seen


def look_at(stretch: Stretch) -> Look:
    """See the dialogs of a stretch of a file, which may be in another process."""
    return look(dialog for _, dialog in stretch)


def _sizes(dialog: Dialog) -> tuple[int, int, int, int]:
    characters = written = han = 0
    for message in dialog.messages:
        characters += len(message.content)
        written += sum(map(len, message.content.split()))
        han += 0 if message.content.isascii() else len(_HAN.findall(message.content))
    return len(dialog.messages), characters, written, han


class Asked:
    """What the split needs of dialogs that are read once and may be many: their questions in normal form, numbered, and some digests.

    For a dialog without a question, its first message stands for it. The texts themselves lie in a temporary file in `folder`.
    `numbers`: the number of every question in order, those of dialog i from ``starts[i]`` on, ``lengths[i]`` of them; numbers follow
    from the texts, not from the order of the dialogs. `prompts`: for each reply of each dialog a number for everything said before it.
    `keys`, `groups`, `kinds`: sha256 of each dialog's content, a number for what it must not be torn from (0: nothing), and for its
    source and length (messages, to a power of two), of which the parts are to have equal shares.
    """

    def __init__(self, dialogs: Iterable[Dialog], folder: Path | None = None) -> None:
        self._take([look(dialogs)], folder)

    @classmethod
    def of(cls, looks: Iterable[Look], folder: Path | None = None) -> Asked:
        """The same from what was seen of the dialogs piece by piece, in their order."""
        found = cls.__new__(cls)
        found._take(looks, folder)
        return found

    def _take(self, looks: Iterable[Look], folder: Path | None) -> None:
        said, lengths, replies, prompts = array("Q"), array("q"), array("q"), array("Q")
        keys, groups, kinds = bytearray(), array("Q"), array("q")
        kind_of: dict[tuple[str, int], int] = {}
        with TextFile.writing(folder) as put:
            for seen in looks:
                for text in seen.texts:
                    put(text)
                said.extend(seen.said)
                lengths.extend(seen.lengths)
                replies.extend(seen.replies)
                prompts.extend(seen.prompts)
                keys += seen.keys
                groups.extend(seen.groups)
                kinds.extend(kind_of.setdefault(kind, len(kind_of)) for kind in seen.kinds)
        _, first, numbers = np.unique(np.array(said, np.uint64), return_index=True, return_inverse=True)
        self.texts = put.texts.some(first)
        self.characters = self.texts.lengths
        self.numbers = numbers.astype(np.int64)
        self.lengths = np.array(lengths, np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.replies = np.array(replies, np.int64)
        self.prompts = np.unique(np.array(prompts, np.uint64), return_inverse=True)[1].astype(np.int64)
        self.keys = np.frombuffer(bytes(keys), "S32")
        self.groups = np.array(groups, np.uint64)
        self.kinds = np.array(kinds, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def occurrences(self) -> _Texts:
        """Every question of every dialog."""
        return _Texts(self.numbers, self.starts, self.lengths)

    def openings(self) -> _Texts:
        """The first question of every dialog."""
        return _Texts(self.numbers[self.starts], np.arange(len(self)), np.ones(len(self), np.int64))

    def contexts(self) -> _Texts:
        """Everything said before each reply of every dialog."""
        return _Texts(self.prompts, np.cumsum(self.replies) - self.replies, self.replies)


@dataclass(frozen=True)
class Split:
    """The part (0 train, 1 validation, 2 test) and the cluster of each dialog; the questions through which no join was made."""

    part: np.ndarray
    cluster: np.ndarray
    refused: tuple[str, ...]


def divide(asked: Asked, rules: Rules) -> Split:
    """Part of each dialog: shares of the whole to ±1 wherever the clusters allow it. `DataError` below ten clusters."""
    cluster, refused, different = clusters_of(asked, rules)
    found = min(len(np.unique(cluster)), different)
    if found < LEAST_CLUSTERS:
        raise DataError(
            f"{len(asked)} dialogs with {found} different questions are too few to split.", path="collect.sources",
            value=found, rule=f"at least {LEAST_CLUSTERS} clusters of questions, one for each tenth",
            hint="Add conversations that ask something else.",
        )
    return Split(_assigned(asked, cluster, rules), cluster, refused)


def sizes(count: int, shares: Sequence[float]) -> tuple[int, int, int]:
    """Dialogs of each part: validation and test rounded, training the rest."""
    validation, test = (max(1, round(count * share)) for share in shares[1:])
    return count - validation - test, validation, test


def clusters_of(asked: Asked, rules: Rules) -> tuple[np.ndarray, tuple[str, ...], int]:
    """The cluster of each dialog, numbered by first appearance; questions through which no join was made; different questions.

    Different are questions that are no near-duplicates of each other.
    """
    alike = Joined(len(asked.texts))
    for pair in similar_pairs(asked.texts, rules.threshold, executor=rules.executor).tolist():
        alike.join(*pair)
    roots = alike.roots()
    count = len(asked)
    joined = Joined(count)
    for members in _shared(asked.groups, np.arange(count), asked.groups != 0).values():
        joined.join(*members)
    joined.limit = sizes(count, rules.shares)[TRAIN]
    opening = np.zeros(len(asked.numbers), bool)
    opening[asked.starts] = True
    dialog = np.repeat(np.arange(count), asked.lengths)
    counted = opening | (asked.characters[asked.numbers] >= rules.question_length)
    refused = []
    for wanted in (opening, counted):
        holders = _shared(roots[asked.numbers], dialog, wanted)
        for root in sorted(holders, key=lambda root: (len(holders[root]), asked.texts[root])):
            if not joined.join(*holders[root]):
                refused.append(asked.texts[root])
    _, first, own = np.unique(joined.roots(), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[own], tuple(dict.fromkeys(refused)), len(np.unique(roots))


def _shared(value: np.ndarray, dialog: np.ndarray, wanted: np.ndarray) -> dict[int, list[int]]:
    """For each value that two dialogs or more hold where it is `wanted`: these dialogs, ascending."""
    order = np.lexsort((dialog[wanted], value[wanted]))
    values, dialogs = value[wanted][order], dialog[wanted][order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (dialogs[1:] != dialogs[:-1])
    values, dialogs = values[new], dialogs[new]
    edges = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1], [True]])) if len(values) else np.zeros(1, np.int64)
    several = np.flatnonzero(np.diff(edges) > 1)
    return {int(values[edges[i]]): dialogs[edges[i] : edges[i + 1]].tolist() for i in several.tolist()}


def measured(asked: Asked, part: np.ndarray, rules: Rules, copies: Sequence[int]) -> dict[str, Any]:
    """How much of the test stands in training, for this split and beside it for a row-random split of what was read.

    ``exact_overlap`` and ``near_duplicate_share`` (which counts exact ones too) are shares of the test's questions, each occurrence
    counted: every user message that a reply follows. ``openings`` and ``prompts`` (everything said before a reply) give the same for
    the first question of a dialog and for whole contexts. `copies` says how often each dialog was read: a row-random split, as
    it is usually made, does not leave repetitions out. Its figures are means over twenty such splits.
    """
    rows = np.repeat(np.arange(len(part)), copies)
    naive = [_row_random(len(rows), rules, draw) for draw in range(DRAWS)]
    every = np.arange(len(part))

    def shares(texts: _Texts, pairs: np.ndarray | None = None) -> tuple[float, float]:
        return texts.known(every, part, pairs=pairs), float(np.mean([texts.known(rows, drawn, pairs=pairs) for drawn in naive]))

    # Other permutations than the clusters were made with: a pair that those missed is not missed here for the same reason.
    pairs = similar_pairs(asked.texts, rules.threshold, seed=1, executor=rules.executor)
    questions = asked.occurrences()
    exact, random = shares(questions)
    near, random_near = shares(questions, pairs)
    found: dict[str, Any] = {
        "exact_overlap": exact, "near_duplicate_share": near,
        "row_random_exact_overlap": random, "row_random_near_duplicate_share": random_near,
        "validation_exact_overlap": questions.known(every, part, tested=VALIDATION),
    }  # fmt: skip
    counts = {"questions": int(questions.lengths[part == TEST].sum())}
    for name, texts in (("openings", asked.openings()), ("prompts", asked.contexts())):
        exact, random = shares(texts)
        found[name] = {"exact_overlap": exact, "row_random_exact_overlap": random}
        counts[name] = int(texts.lengths[part == TEST].sum())
    return {**found, "tested": counts}


def _row_random(count: int, rules: Rules, draw: int) -> np.ndarray:
    train, validation, _ = sizes(count, rules.shares)
    order = generator(rules.seed, "row_random_split", draw).permutation(count)
    part = np.zeros(count, np.int64)
    part[order[train : train + validation]], part[order[train + validation :]] = VALIDATION, TEST
    return part


@dataclass(frozen=True)
class _Texts:
    """Numbered texts of all dialogs, one after the other; dialog i has ``lengths[i]`` of them from ``starts[i]`` on."""

    numbers: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def known(self, rows: np.ndarray, part: np.ndarray, *, tested: int = TEST, pairs: np.ndarray | None = None) -> float:
        """Share of one part's texts that stand in training, or in one of `pairs` with a text there. `rows`: the dialog of each row."""
        if not len(self.numbers):
            return 0.0
        trained = np.zeros(self.numbers.max() + 1, bool)
        trained[self._in(rows[part == TRAIN])] = True
        near = trained.copy()
        if pairs is not None:
            near[pairs[trained[pairs[:, 1]], 0]] = True
            near[pairs[trained[pairs[:, 0]], 1]] = True
        own = near[self._in(rows[part == tested])]
        return float(own.mean()) if len(own) else 0.0

    def _in(self, dialogs: np.ndarray) -> np.ndarray:
        lengths = self.lengths[dialogs]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        numbers: np.ndarray = self.numbers[np.repeat(self.starts[dialogs], lengths) + within]
        return numbers


def _prompts(dialog: Dialog, plain: Mapping[str, str]) -> list[int]:
    said = hashlib.sha256()
    found = []
    for message in dialog.messages:
        if message.role == "assistant":
            found.append(int.from_bytes(said.digest()[:8], "little"))
        said.update(f"{message.role}\x1f{plain[message.content]}\x1e".encode("utf-8", "surrogatepass"))
    return found


def _digest(content: bytes) -> int:
    """64 bits: of ten million texts, two different ones have the same with a chance of 3 in a million."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _drawn(keys: np.ndarray, seed: int) -> Iterator[int]:
    """For each key a number that nobody can foresee; two different ones are equal as seldom as digests of 64 bits."""
    for key in keys:
        text = f"{seed}/{bytes(key).ljust(32, bytes(1)).hex()}"
        yield int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _assigned(asked: Asked, cluster: np.ndarray, rules: Rules) -> np.ndarray:
    """Fill validation and test from small clusters in an order of the seed and the content, first so that kinds keep their shares."""
    count = len(asked)
    by_key = np.lexsort((asked.keys, cluster))
    starts = np.flatnonzero(np.concatenate([[True], cluster[by_key][1:] != cluster[by_key][:-1]]))
    lengths = np.diff(np.append(starts, count))
    order = np.argsort(np.fromiter(_drawn(asked.keys[by_key[starts]], rules.seed), np.uint64, len(starts)), kind="stable").tolist()
    whole = np.bincount(asked.kinds)
    wanted = sizes(count, rules.shares)
    part = np.zeros(count, np.int64)
    left = {VALIDATION: wanted[VALIDATION], TEST: wanted[TEST]}
    room = {target: (whole * wanted[target] / count).tolist() for target in left}
    kinds, free = asked.kinds.tolist(), order

    def members(number: int) -> list[int]:
        own: list[int] = by_key[starts[number] : starts[number] + lengths[number]].tolist()
        return own

    small = max(1, min(left.values()) // 20)  # no cluster is to be more than a twentieth of a part, unless nothing else fits
    for balanced, largest in ((True, small), (False, small), (False, count)):
        waiting = []
        for place, number in enumerate(free):
            if not any(left.values()):
                waiting += free[place:]
                break
            length = int(lengths[number])
            for target in sorted(left, key=lambda target: -left[target] / wanted[target]):
                if length > min(left[target], largest):
                    continue
                own = Counter(kinds[i] for i in members(number))
                if not balanced or all(room[target][kind] >= many - 0.5 for kind, many in own.items()):
                    part[members(number)] = target
                    left[target] -= length
                    for kind, many in own.items():
                        room[target][kind] -= many
                    break
            else:
                waiting.append(number)
        free = waiting
    for target in sorted(left, key=lambda target: -left[target]):
        if free and left[target]:
            smallest = min(free, key=lambda number: lengths[number])
            if lengths[smallest] < 2 * left[target]:  # too much by less than is missing
                part[members(smallest)] = target
                free.remove(smallest)
    return part
