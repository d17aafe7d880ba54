"""Whether two sets of dialogs differ: in what can be counted (`description.py`) and in what their users say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from chattune.core.seeds import generator
from chattune.dialogs.description import FEATURES, feature_rows
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    from chattune.features.embedding import Embedding
    from chattune.features.shift import Shift

_HAS_WORD = re.compile(r"[^\W_]").search
_DIRECTIONS = 16  # of meaning: few, so that three tests on a thousand rows can find a change in any of them
_READ = 2000  # characters of what a user said that its meaning is taken from


def dialog_features(dialogs: Sequence[Dialog], embedding: Embedding | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """(n, d) float64 of what can be counted in each dialog and, with an `embedding`, of where its user's words lie; and d names."""
    counted = feature_rows([*dialogs])
    if embedding is None:
        return counted, FEATURES
    meant = embedding.encode([_asked(dialog) for dialog in dialogs]).astype(np.float64)
    return np.concatenate([counted, meant], axis=1), (*FEATURES, *(f"meaning {number + 1}" for number in range(meant.shape[1])))


def dialog_shift(a: Iterable[Dialog], b: Iterable[Dialog], seed: int = 0, level: float = 0.01) -> Shift:
    """Whether dialogs of `b` are of another kind than those of `a`: training and validation, or training and a new batch of logs.

    Of each side 1,000 are drawn while they are read. Meanings are learnt from both sides together: directions that fit one side better
    than the other would be a shift of their own making. `DataError` for fewer than 20 on a side.
    """
    from chattune.features.embedding import FittedEmbedding
    from chattune.features.shift import LEAST, ROWS, shift

    left, right = drawn(a, ROWS, generator(seed, "shift", "a")), drawn(b, ROWS, generator(seed, "shift", "b"))
    both = [*left, *right]
    asked = [_asked(dialog) for dialog in both]
    readable = min(len(left), len(right)) >= LEAST and any(map(_HAS_WORD, asked))
    embedding = FittedEmbedding.fit(asked, _DIRECTIONS, seed) if readable else None
    rows, names = dialog_features(both, embedding)
    return shift(rows[: len(left)], rows[len(left) :], seed, names=names, level=level)


def drawn(dialogs: Iterable[Dialog], count: int, random: np.random.Generator) -> list[Dialog]:
    """`count` of the dialogs, or all where there are fewer, each set of them equally likely, in one pass. Source: Vitter 1985, R."""
    kept: list[Dialog] = []
    for number, dialog in enumerate(dialogs):
        if number < count:
            kept.append(dialog)
        elif (place := int(random.integers(number + 1))) < count:
            kept[place] = dialog
    return kept


def _asked(dialog: Dialog) -> str:
    return "\n".join(message.content for message in dialog.messages if message.role == "user")[:_READ]
