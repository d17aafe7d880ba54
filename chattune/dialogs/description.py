"""What dialogs look like in numbers: the features that a shift is sought in, and a tally of lengths, writing and words.

Everything here is counted dialog by dialog, so that any number of them can be described.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from chattune.dialogs.dialog import Dialog
from chattune.features.words import chosen, splitter

FEATURES = (
    "messages", "characters a message", "characters a reply", "share of Han", "share of digits", "share of symbols",
    "share of capitals", "questions a user message", "formality",
)  # fmt: skip
_WORDS = 2_000_000  # of each tally, whose n-grams are counted; all others only count towards lengths
_SCRIPTS = {"CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
_FORMAL = re.compile(
    r"\b(?:please|kindly|regards|sincerely|dear|furthermore|however|therefore|would you|could you|we apologi[sz]e|assist)\b"
    r"|您|请问|敬请|贵公司|感谢您|此致|谨|烦请"
)
_INFORMAL = re.compile(
    r"\b(?:lol|haha+|hehe+|omg|btw|gonna|wanna|gotta|yeah|yep|nope|dunno|kinda|u|ur|thx|pls|hey|i'?m|don'?t|can'?t|it'?s|ain'?t)\b"
    r"|[!?]{2,}|(?:^|\s)[:;]-?[)(DPp]|哈哈|嘿|啊|呀|嘛|哦|咋|啥|呗|哇|[\U0001f300-\U0001faff]", re.IGNORECASE,
)  # fmt: skip


def formality(text: str) -> float:
    """From −1 (informal) to 1 (formal): marks of either kind in English and Chinese, over their sum and one for neither.

    A proxy that looks at words such as "kindly", "您" and "haha", not at what is said.
    """
    formal, informal = len(_FORMAL.findall(text.lower())), len(_INFORMAL.findall(text))
    return (formal - informal) / (formal + informal + 1)


def features(dialog: Dialog) -> list[float]:
    """The numbers that `FEATURES` names; lengths as logarithms, so that a long one does not outweigh all."""
    contents = [message.content for message in dialog.messages]
    replies = [message.content for message in dialog.messages if message.role == "assistant"]
    asked = [message.content for message in dialog.messages if message.role == "user"]
    text = "".join(contents)
    plain = [character for character in text if not character.isspace()]
    kinds = Counter(unicodedata.category(character)[:2] for character in plain)
    total = max(1, len(plain))
    return [
        math.log(len(contents)), math.log(1 + len(text) / len(contents)), math.log(1 + sum(map(len, replies)) / max(1, len(replies))),
        sum(script(character) == "Han" for character in plain) / total, kinds["Nd"] / total,
        sum(count for kind, count in kinds.items() if kind[0] in "PS") / total, kinds["Lu"] / total,
        sum(message.count("?") + message.count("？") for message in asked) / max(1, len(asked)), formality(text),
    ]  # fmt: skip


def feature_rows(dialogs: list[Dialog]) -> np.ndarray:
    """(n, features) float64."""
    return np.array([features(dialog) for dialog in dialogs], np.float64).reshape(len(dialogs), len(FEATURES))


def script(character: str) -> str | None:
    """The writing that a letter belongs to: ``Latin``, ``Han``, ``Cyrillic`` …; none for what is no letter."""
    if character.isascii():
        return "Latin" if character.isalpha() else None
    if not character.isalpha():
        return None
    first = unicodedata.name(character, "").partition(" ")[0]
    return _SCRIPTS.get(first, first.capitalize() or None)


@dataclass
class Tally:
    """Counted over dialogs by `see`; `told` gives plain data."""

    dialogs: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)  # messages of a dialog
    sizes: Counter[int] = field(default_factory=Counter)  # characters of a message, to a power of two
    styles: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    counted: int = 0

    def see(self, dialog: Dialog) -> None:
        self.dialogs += 1
        self.sources[dialog.source] += 1
        self.lengths[len(dialog.messages)] += 1
        writing: Counter[str] = Counter()
        for message in dialog.messages:
            self.roles[message.role] += 1
            self.characters[message.role] += len(message.content)
            self.sizes[max(0, len(message.content) - 1).bit_length()] += 1
            writing.update(name for character in message.content[:2000] if (name := script(character)))
            if message.role == "assistant" and self.counted < _WORDS:
                words = splitter(chosen("auto", [message.content]))(message.content)
                self.words.update(words)
                self.pairs.update(pairwise(words))
                self.counted += len(words)
        self.scripts[writing.most_common(1)[0][0] if writing else "none"] += 1
        style = formality("\n".join(message.content for message in dialog.messages))
        self.styles["formal" if style > 0.2 else "informal" if style < -0.2 else "neither"] += 1
        for name, value in dialog.metadata.items():
            if isinstance(value, (str, bool)) and len(str(value)) <= 40:
                own = self.labels.setdefault(name, Counter())
                if len(own) <= 200:
                    own[str(value)] += 1

    def told(self) -> dict[str, Any]:
        total = sum(self.words.values())
        entropy = -sum(count / total * math.log2(count / total) for count in self.words.values()) if total else 0.0
        return {
            "dialogs": self.dialogs, "roles": dict(self.roles.most_common()), "characters": dict(self.characters.most_common()),
            "writing": dict(self.scripts.most_common()), "messages_a_dialog": dict(sorted(self.lengths.items())),
            "characters_a_message": {f"{1 << place if place else 0}": count for place, count in sorted(self.sizes.items())},
            "style": dict(self.styles.most_common()), "sources": dict(self.sources.most_common()),
            "labels": {name: dict(own.most_common(20)) for name, own in sorted(self.labels.items()) if 1 < len(own) <= 200},
            "diversity": {
                "words": total, "different_words": len(self.words), "distinct_1": len(self.words) / max(1, total),
                "distinct_2": len(self.pairs) / max(1, total), "entropy_bits": entropy,
            },
        }  # fmt: skip
