"""How good a dialog is to learn from, by what can be counted: lengths, repetition, symbols, letters that a language knows.

Each part is a number from 0 (bad) to 1 (good), and the whole is the worst of them: no good part makes up for a bad one. It is a
filter against rubbish, no judgement of what is said.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from chattune.dialogs.dialog import Dialog
from chattune.dialogs.near_duplicates import normalised, spaced

PARTS = ("length", "repetition", "letters", "variety", "likelihood")
_URL = re.compile(r"\b(?:https?://|www\.)\S+")
_ORDER = 3  # characters of the model that knows what is usual here


@dataclass(frozen=True)
class Quality:
    """The parts by name, each from 0 to 1; the score is the least."""

    parts: dict[str, float]

    @property
    def score(self) -> float:
        return self.parts[self.worst]

    @property
    def worst(self) -> str:
        """The part that speaks against it most."""
        return min(self.parts, key=lambda name: (self.parts[name], name))


class Usual:
    """Characters as these dialogs use them: an interpolated model of three characters, for how unlikely a text is among the others.

    `mean` and `spread`: median and median absolute deviation (times 1.4826) of nats a character over the dialogs it was made from.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._counts: list[Counter[str]] = [Counter() for _ in range(_ORDER + 1)]
        holding: Counter[str] = Counter()
        kept = []
        for text in islice(texts, 20_000):  # enough to know an alphabet by
            plain = f"  {normalised(text)[:2000]} "
            for order in range(_ORDER + 1):
                grams = [plain[place - order : place] for place in range(order, len(plain) + 1)]
                self._counts[order].update(grams)
                holding.update(set(grams))
            kept.append(plain)
        # What one text alone holds is not usual: it would make that text likely by itself.
        self._counts = [Counter({gram: n for gram, n in counts.items() if holding[gram] > 1}) for counts in self._counts]
        found = sorted(self.nats(text) for text in kept[:: max(1, len(kept) // 2000)]) or [0.0]
        self.mean = found[len(found) // 2]
        self.spread = max(0.05, 1.4826 * sorted(abs(value - self.mean) for value in found)[len(found) // 2])

    def nats(self, text: str) -> float:
        """Nats a character."""
        total, count = 0.0, 0
        letters = max(1, len(self._counts[1]))
        everything = max(1, sum(self._counts[1].values()))
        for place in range(2, len(text)):
            share = (self._counts[1][text[place]] + 1) / (everything + letters + 1)
            for order in (2, 3):
                before = self._counts[order - 1][text[place - order + 1 : place]]
                own = self._counts[order][text[place - order + 1 : place + 1]]
                share = (own + 4 * share) / (before + 4)
            total -= math.log(share)
            count += 1
        return total / max(1, count)


def quality(dialog: Dialog, usual: Usual | None = None) -> Quality:
    """The quality of a dialog's replies. Without `usual` the part ``likelihood`` is left out."""
    replies = [message.content for message in dialog.messages if message.role == "assistant"]
    text = "\n".join(replies)
    words = spaced(text).split()
    parts = {
        "length": _length(len(words) / max(1, len(replies))),
        "repetition": _repetition(text),
        "letters": _letters(text),
        "variety": _variety(words),
    }
    if usual is not None:
        beyond = (usual.nats(f"  {normalised(text)[:2000]} ") - usual.mean) / usual.spread
        parts["likelihood"] = _falling(beyond, 3.0, 10.0)
    return Quality(parts)


def _length(words: float) -> float:
    """Replies of one word say little, very long ones are seldom talk."""
    return min(1.0, 0.6 + 0.1 * words) * _falling(words, 400.0, 4000.0)


def _repetition(text: str) -> float:
    """What DEFLATE makes of a text: ordinary ones of some length keep a third or more of their bytes."""
    content = text.encode("utf-8", "surrogatepass")
    if len(content) < 200:
        return 1.0
    return min(1.0, len(zlib.compress(content, 6)) / len(content) / 0.3)


def _letters(text: str) -> float:
    """Share of letters among what is not white space, addresses left out; code and tables have fewer than talk."""
    plain = [character for character in _URL.sub("", text) if not character.isspace()]
    if not plain:
        return 0.0
    good = sum(unicodedata.category(character)[0] in "LM" for character in plain)
    return min(1.0, good / len(plain) / 0.6)


def _variety(words: list[str]) -> float:
    """Different words among the first hundred."""
    some = words[:100]
    return 1.0 if len(some) < 10 else min(1.0, len(set(some)) / len(some) / 0.4)


def _falling(value: float, good: float, bad: float) -> float:
    """1 up to `good`, 0 from `bad` on, straight between."""
    return min(1.0, max(0.0, (bad - value) / (bad - good)))
