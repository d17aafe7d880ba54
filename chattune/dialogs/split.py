"""Training, validation and test without leaks: what a test asks has not been asked in training.

A *question* is a user message that a reply follows. Dialogs that share a group, a question or a nearly equal question form a
cluster, and a cluster is never torn apart. In long chats nearly everything hangs together through "yes" and "haha", so
questions join in the order opening questions first, then from the rarest to the most common, and a join that would make a
cluster too large for training is refused and counted: only then do such common turns stand on both sides, and the reported
overlap says how many.

Which clusters go where follows from the seed and the content alone. Validation and test take clusters so that sources and
lengths of dialogs stand in them as in the whole.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from chattune.core.errors import DataError
from chattune.core.seeds import generator
from chattune.dialogs.artifact import SPLITS
from chattune.dialogs.dialog import Dialog
from chattune.dialogs.near_duplicates import Joined, normalised, similar_pairs
from chattune.dialogs.shape import content_key, questions

LEAST_CLUSTERS = 10
TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class Rules:
    """How to split: shares of the dialogs, the Jaccard from which questions are near-duplicates, which messages are questions."""

    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    threshold: float = 0.7
    questions: Literal["every", "opening"] = "every"
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """The part (0 train, 1 validation, 2 test) and the cluster of each dialog; joins that were refused and why they matter."""

    part: np.ndarray
    cluster: np.ndarray
    refused: tuple[str, ...]


def split(dialogs: Sequence[Dialog], rules: Rules) -> Split:
    """Part of each dialog: shares of the whole to ±1 wherever the clusters allow it. `DataError` below ten clusters."""
    if len(dialogs) < LEAST_CLUSTERS:
        raise _too_small(len(dialogs), len(dialogs))
    cluster, refused = clusters_of(dialogs, rules)
    if cluster.max() + 1 < LEAST_CLUSTERS:
        raise _too_small(len(dialogs), int(cluster.max()) + 1)
    return Split(_assigned(dialogs, cluster, rules), cluster, refused)


def sizes(count: int, shares: Sequence[float]) -> tuple[int, int, int]:
    """Dialogs of each part: validation and test rounded, training the rest."""
    validation, test = (max(1, round(count * share)) for share in shares[1:])
    return count - validation - test, validation, test


def clusters_of(dialogs: Sequence[Dialog], rules: Rules) -> tuple[np.ndarray, tuple[str, ...]]:
    """The cluster of each dialog, numbered by first appearance, and the questions through which no join was made."""
    asked = [asked_in(dialog) for dialog in dialogs]
    counted = [set(own) if rules.questions == "every" else {own[0]} for own in asked]
    texts = sorted(set().union(*counted))  # sorted: the order of the input must not matter
    number = {text: index for index, text in enumerate(texts)}
    alike = Joined(len(texts))
    for left, right in similar_pairs(texts, rules.threshold):
        alike.join(int(left), int(right))
    opened, held = defaultdict[int, list[int]](list), defaultdict[int, set[int]](set)
    for index, own in enumerate(counted):
        opened[alike.root(number[asked[index][0]])].append(index)
        for text in own:
            held[alike.root(number[text])].add(index)

    joined = Joined(len(dialogs))
    for members in _grouped(dialogs).values():
        joined.join(*members)
    joined.limit = sizes(len(dialogs), rules.shares)[TRAIN]
    refused = []
    for holders in (opened, held):
        for root in sorted(holders, key=lambda root: (len(holders[root]), texts[root])):
            if len(holders[root]) > 1 and not joined.join(*holders[root]):
                refused.append(texts[root])
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(joined.root(index), len(numbers)) for index in range(len(dialogs))]), tuple(dict.fromkeys(refused))


def asked_in(dialog: Dialog) -> list[str]:
    """The normalised questions of a dialog in order; for one without a question, its first message."""
    return [normalised(text) for text in questions(dialog)] or [normalised(dialog.messages[0].content)]


def measured(dialogs: Sequence[Dialog], part: np.ndarray, rules: Rules, copies: Sequence[int]) -> dict[str, Any]:
    """How much of the test stands in training, for this split and beside it for a row-random split of what was read.

    ``exact_overlap`` and ``near_duplicate_share`` (which counts exact ones too) are shares of the test's questions, each occurrence
    counted: every user message that a reply follows. ``openings`` and ``prompts`` (everything said before a reply) give the same for
    the first question of a dialog and for whole contexts. `copies` says how often each dialog was read: a row-random split, as
    it is usually made, does not leave repetitions out.
    """
    rows = np.repeat(np.arange(len(dialogs)), copies)
    random = np.zeros(len(rows), np.int64)
    train, validation, _ = sizes(len(rows), rules.shares)
    order = generator(rules.seed, "row_random_split").permutation(len(rows))
    random[order[train : train + validation]], random[order[train + validation :]] = VALIDATION, TEST
    ours, naive = list(zip(range(len(dialogs)), part.tolist(), strict=True)), list(zip(rows.tolist(), random.tolist(), strict=True))

    asked = [asked_in(dialog) for dialog in dialogs]
    texts = sorted({text for own in asked for text in own})
    # Other permutations than the clusters were made with: a pair that those missed is not missed here for the same reason.
    pairs = [(texts[left], texts[right]) for left, right in similar_pairs(texts, rules.threshold, seed=1)]
    questions = _overlap(asked, ours)
    near = _overlap(asked, ours, pairs=pairs)
    found = {
        "exact_overlap": questions["share"],
        "near_duplicate_share": near["share"],
        "row_random_exact_overlap": _overlap(asked, naive)["share"],
        "row_random_near_duplicate_share": _overlap(asked, naive, pairs=pairs)["share"],
        "validation_exact_overlap": _overlap(asked, ours, VALIDATION)["share"],
        "questions": {**questions, "near": near["count"]},
    }
    for name, level in (("openings", [own[:1] for own in asked]), ("prompts", [_prompts(dialog) for dialog in dialogs])):
        found[name] = {**_overlap(level, ours), "row_random_share": _overlap(level, naive)["share"]}
    return found


def _prompts(dialog: Dialog) -> list[str]:
    """For each reply, a digest of everything said before it."""
    said = hashlib.sha256()
    found = []
    for message in dialog.messages:
        if message.role == "assistant":
            found.append(said.hexdigest())
        said.update(f"{message.role}\x1f{normalised(message.content)}\x1e".encode("utf-8", "surrogatepass"))
    return found


def _overlap(
    asked: Sequence[Sequence[str]], placed: Sequence[tuple[int, int]], tested: int = TEST, pairs: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """How many of one part's texts stand in training, or have one of `pairs` with a text there; `placed`: dialog and part of each row."""
    known = {text for index, part in placed if part == TRAIN for text in asked[index]}
    near = known | {right for left, right in pairs if left in known} | {left for left, right in pairs if right in known}
    own = [text for index, part in placed if part == tested for text in asked[index]]
    count = sum(text in near for text in own)
    return {"share": count / len(own) if own else 0.0, "count": count, "of": len(own)}


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
                fits = len(own) <= min(left[target], largest)
                if fits and (not balanced or all(room[target][kind] >= count - 0.5 for kind, count in Counter(kinds[i] for i in own).items())):
                    part[own] = target
                    left[target] -= len(own)
                    for i in own:
                        room[target][kinds[i]] -= 1
                    break
            else:
                waiting.append(own)
        free = waiting
    return part


def _kind(dialog: Dialog) -> tuple[str, int]:
    """Source and length (messages, to a power of two): what the parts are to have in equal shares."""
    return dialog.source, len(dialog.messages).bit_length()


def _too_small(dialogs: int, clusters: int) -> DataError:
    return DataError(
        f"{dialogs} dialogs in {clusters} clusters of different questions are too few to split.", path="collect.sources", value=clusters,
        rule=f"at least {LEAST_CLUSTERS} clusters, one for each tenth", hint="Add conversations that ask something else.",
    )


__all__ = ["LEAST_CLUSTERS", "SPLITS", "Rules", "Split", "asked_in", "clusters_of", "measured", "sizes", "split"]
