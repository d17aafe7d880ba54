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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from chattune.core.errors import DataError
from chattune.core.seeds import generator
from chattune.dialogs.dialog import Dialog
from chattune.dialogs.near_duplicates import Joined, Texts, normalised
from chattune.dialogs.shape import content_key, questions

LEAST_CLUSTERS = 10
DRAWS = 20
TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class Rules:
    """How to split: shares of the dialogs, the Jaccard from which questions are near-duplicates, what counts as a question.

    `question_length`: normalised characters from which a later question joins dialogs; the opening one always does.
    """

    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    threshold: float = 0.7
    question_length: int = 1
    seed: int = 0


class Asked:
    """The dialogs and their normalised questions in order; for a dialog without a question, its first message stands for it."""

    def __init__(self, dialogs: Sequence[Dialog]) -> None:
        self.dialogs = dialogs
        self.of = [[normalised(text) for text in questions(dialog)] or [normalised(dialog.messages[0].content)] for dialog in dialogs]

    @cached_property
    def texts(self) -> list[str]:
        """Every different question, sorted: the order of the input must not matter."""
        return sorted({text for own in self.of for text in own})

    @cached_property
    def number(self) -> dict[str, int]:
        return {text: index for index, text in enumerate(self.texts)}

    @cached_property
    def compared(self) -> Texts:
        return Texts(self.texts)

    @cached_property
    def prompts(self) -> list[list[str]]:
        """For each reply of each dialog, a digest of everything said before it."""
        return [_prompts(dialog) for dialog in self.dialogs]


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
            f"{len(asked.dialogs)} dialogs with {found} different questions are too few to split.", path="collect.sources",
            value=found, rule=f"at least {LEAST_CLUSTERS} clusters of questions, one for each tenth",
            hint="Add conversations that ask something else.",
        )
    return Split(_assigned(asked.dialogs, cluster, rules), cluster, refused)


def sizes(count: int, shares: Sequence[float]) -> tuple[int, int, int]:
    """Dialogs of each part: validation and test rounded, training the rest."""
    validation, test = (max(1, round(count * share)) for share in shares[1:])
    return count - validation - test, validation, test


def clusters_of(asked: Asked, rules: Rules) -> tuple[np.ndarray, tuple[str, ...], int]:
    """The cluster of each dialog, numbered by first appearance; questions through which no join was made; different questions.

    Different are questions that are no near-duplicates of each other.
    """
    number = asked.number
    alike = Joined(len(number))
    for pair in asked.compared.similar_pairs(rules.threshold):
        alike.join(*pair)
    opened, held = defaultdict[int, set[int]](set), defaultdict[int, set[int]](set)
    for index, own in enumerate(asked.of):
        opened[alike.root(number[own[0]])].add(index)
        for place, text in enumerate(own):
            if place == 0 or len(text) >= rules.question_length:
                held[alike.root(number[text])].add(index)

    count = len(asked.dialogs)
    joined = Joined(count)
    for members in _grouped(asked.dialogs).values():
        joined.join(*members)
    joined.limit = sizes(count, rules.shares)[TRAIN]
    refused = []
    for holders in (opened, held):
        for root in sorted(holders, key=lambda root: (len(holders[root]), asked.texts[root])):
            if len(holders[root]) > 1 and not joined.join(*holders[root]):
                refused.append(asked.texts[root])
    numbers: dict[int, int] = {}
    clusters = np.array([numbers.setdefault(joined.root(index), len(numbers)) for index in range(count)], np.int64)
    return clusters, tuple(dict.fromkeys(refused)), len({alike.root(index) for index in range(len(number))})


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
    pairs = np.array(asked.compared.similar_pairs(rules.threshold, seed=1), np.int64).reshape(-1, 2)
    questions = _Texts.of(asked.of, asked.number)
    exact, random = shares(questions)
    near, random_near = shares(questions, pairs)
    found: dict[str, Any] = {
        "exact_overlap": exact, "near_duplicate_share": near,
        "row_random_exact_overlap": random, "row_random_near_duplicate_share": random_near,
        "validation_exact_overlap": questions.known(every, part, tested=VALIDATION),
    }  # fmt: skip
    counts = {"questions": int(questions.lengths[part == TEST].sum())}
    for name, texts in (("openings", _Texts.of([own[:1] for own in asked.of], asked.number)), ("prompts", _Texts.of(asked.prompts))):
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

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]], number: Mapping[str, int] | None = None) -> _Texts:
        given = dict(number or {})
        numbers = np.fromiter((given.setdefault(text, len(given)) for own in texts for text in own), np.int64)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return cls(numbers, np.cumsum(lengths) - lengths, lengths)

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


def _prompts(dialog: Dialog) -> list[str]:
    said = hashlib.sha256()
    found = []
    for message in dialog.messages:
        if message.role == "assistant":
            found.append(said.hexdigest())
        said.update(f"{message.role}\x1f{normalised(message.content)}\x1e".encode("utf-8", "surrogatepass"))
    return found


def _grouped(dialogs: Sequence[Dialog]) -> Mapping[str, list[int]]:
    groups = defaultdict[str, list[int]](list)
    for index, dialog in enumerate(dialogs):
        if dialog.group is not None:
            groups[dialog.group].append(index)
    return groups


def _assigned(dialogs: Sequence[Dialog], cluster: np.ndarray, rules: Rules) -> np.ndarray:
    """Fill validation and test from small clusters in an order of the seed and the content, first so that kinds keep their shares."""
    members = defaultdict[int, list[int]](list)
    for index, number in enumerate(cluster.tolist()):
        members[number].append(index)
    keys = [content_key(dialog) for dialog in dialogs]
    order = sorted(members.values(), key=lambda own: hashlib.sha256(f"{rules.seed}/{min(keys[i] for i in own)}".encode()).digest())
    kinds = [_kind(dialog) for dialog in dialogs]
    whole = Counter(kinds)
    wanted = sizes(len(dialogs), rules.shares)
    part = np.zeros(len(dialogs), np.int64)
    left = {VALIDATION: wanted[VALIDATION], TEST: wanted[TEST]}
    room = {target: {kind: count * wanted[target] / len(dialogs) for kind, count in whole.items()} for target in left}
    free = order
    small = max(1, min(left.values()) // 20)  # no cluster is to be more than a twentieth of a part, unless nothing else fits
    for balanced, largest in ((True, small), (False, small), (False, len(dialogs))):
        waiting = []
        for own in free:
            for target in sorted(left, key=lambda target: -left[target] / wanted[target]):
                kinds_of_own = Counter(kinds[i] for i in own)
                even = all(room[target][kind] >= count - 0.5 for kind, count in kinds_of_own.items())
                if len(own) <= min(left[target], largest) and (even or not balanced):
                    part[own] = target
                    left[target] -= len(own)
                    for i in own:
                        room[target][kinds[i]] -= 1
                    break
            else:
                waiting.append(own)
        free = waiting
    for target in sorted(left, key=lambda target: -left[target]):
        smallest = min(free, key=len)
        if len(smallest) < 2 * left[target]:  # too much by less than is missing
            part[smallest] = target
            free.remove(smallest)
    return part


def _kind(dialog: Dialog) -> tuple[str, int]:
    """Source and length (messages, to a power of two): what the parts are to have in equal shares."""
    return dialog.source, len(dialog.messages).bit_length()
