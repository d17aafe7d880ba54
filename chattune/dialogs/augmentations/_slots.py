"""Values that stand in a sentence as if in a blank: numbers, dates, mail addresses, names; where they are, and others of their kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chattune.dialogs.augmentations._text import HAN, PROTECTED, chinese, like, one_of, sentences, words
from chattune.dialogs.dialog import Dialog
from chattune.features.little_words import LITTLE

MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTH = "|".join([*MONTHS, *(f"{name[:3]}(?:\\.|\\b)" for name in MONTHS if name != "May")])
_DATE = re.compile(
    rf"\b(?:{_MONTH})\s+\d{{1,2}}(?:st|nd|rd|th)?\b(?:,?\s+\d{{4}}\b)?|\b\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?(?:{_MONTH})(?:\s+\d{{4}}\b)?"
    rf"|\b(?:{'|'.join(DAYS)})\b|(?<![\w-])\d{{4}}-\d{{1,2}}-\d{{1,2}}(?![\w-])|(?<![\w/])\d{{1,2}}/\d{{1,2}}/\d{{2,4}}(?![\w/])"
    r"|(?<!\d)\d{1,2}:\d{2}(?![\d:])|(?<!\d)\d{4}年(?:\d{1,2}月(?:\d{1,2}[日号])?)?|(?<!\d)\d{1,2}月\d{1,2}[日号]"
    r"|(?:星期|周)[一二三四五六日]|(?<![\w.,$€£¥/:-])(?:19|20)\d{2}(?![\w%/:-]|[.,]\d)"
)
_NUMBER = re.compile(
    r"(?<![\w.,$€£¥/:-])\d+(?:[.,]\d+)*(?:%|(?![\w/:-]|[.,]\d))|(?<=[$€£¥])\d+(?:[.,]\d+)*(?!\w)"
    rf"|(?<=[{HAN}])\d+(?:\.\d+)?(?![A-Za-z\d/:-])|(?<![\w.,/:-])\d+(?:\.\d+)?(?=[{HAN}])"
)
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)\b")
_SMALL = ("0", "1")  # "1 apple" and "0 left" are words of grammar rather than values
_WEEK = "一二三四五六日"
_BEGIN = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")


@dataclass(frozen=True)
class Slot:
    """A value in a text: ``text[start:end]``, and its kind (``number``, ``date``, ``mail``, or the kind of a name)."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def key(self) -> tuple[str, str]:
        """What makes two mentions the same value."""
        return self.kind, self.text.casefold()


class Names:
    """Names by kind; those of one kind can stand for one another."""

    def __init__(self, kinds: Mapping[str, tuple[str, ...]]) -> None:
        self.kinds = kinds
        self._kind = {name.lower(): kind for kind, own in kinds.items() for name in own}
        self._begin: dict[str, list[str]] = {}  # the first word, or Chinese character, of names, and what begins so, the longest first
        for name in sorted(self._kind, key=lambda own: (-len(own), own)):
            if first := _BEGIN.match(name):
                self._begin.setdefault(first[0], []).append(name)

    def find(self, text: str) -> list[Slot]:
        """Where names stand, whatever their capitals; those in letters only as whole words."""
        found, small, end = [], text.lower(), 0
        if not self._begin or len(small) != len(text):  # a few letters change their length: such a text is left alone
            return []
        for match in _BEGIN.finditer(small):
            for name in self._begin.get(match[0], ()) if match.start() >= end else ():
                behind = match.start() + len(name)
                following = small[behind : behind + 1]
                whole = chinese(name[-1] + following) or not following.isalnum()
                if whole and small.startswith(name, match.start()):
                    end = behind
                    found.append(Slot(self._kind[name], text[match.start() : end], match.start(), end))
                    break
        return found


def slots(text: str, names: Names) -> list[Slot]:
    """Values in the order of the text; a longer kind of value (a date) hides a shorter one in it (a number)."""
    taken = [match.span() for match in PROTECTED.finditer(text) if not MAIL.fullmatch(match[0])]
    found: list[Slot] = []
    candidates = [Slot("mail", match[0], *match.span()) for match in MAIL.finditer(text)]
    candidates += [Slot("date", match[0], *match.span()) for match in _DATE.finditer(text)]
    candidates += names.find(text)
    candidates += [Slot("number", match[0], *match.span()) for match in _NUMBER.finditer(text) if match[0] not in _SMALL]
    for slot in candidates:
        if all(slot.end <= start or end <= slot.start for start, end in taken):
            taken.append((slot.start, slot.end))
            found.append(slot)
    return sorted(found, key=lambda own: own.start)


def other(slot: Slot, names: Names, random: np.random.Generator) -> str:
    """Another value of the same kind and form; the same one where there is no other."""
    if slot.kind == "number":
        return _other_number(slot.text, random)
    if slot.kind == "date":
        return _other_date(slot.text, random)
    if slot.kind == "mail":
        return f"{''.join('abcdefghijklmnopqrstuvwxyz'[n] for n in random.integers(26, size=6))}{random.integers(10, 100)}@example.org"
    rest = [name for name in names.kinds[slot.kind] if name.casefold() != slot.text.casefold()]
    return like(one_of(rest, random), slot.text) if rest else slot.text


def filled(text: str, found: Sequence[Slot], instead: Mapping[tuple[str, str], str]) -> str:
    """`text` with each of its slots that `instead` knows (by its key) filled anew."""
    for slot in reversed(found):
        if slot.key in instead:
            new = instead[slot.key]
            new = new if slot.kind in ("number", "date", "mail") else like(new, slot.text)
            text = text[: slot.start] + new + text[slot.end :]
    return text


def _other_number(text: str, random: np.random.Generator) -> str:
    """As many digits, none of the marks changed, and never 0 or 1; whole per cents stay below a hundred."""
    if re.fullmatch(r"\d{1,3}%", text):
        return f"{one_of([str(n) for n in range(2, 100) if f'{n}%' != text], random)}%"
    while True:
        digits = iter(random.integers(10, size=len(text)).tolist())
        drawn = "".join(str(next(digits)) if character.isdigit() else character for character in text)
        first = str(random.integers(1, 10))
        drawn = (first if text[0] != "0" else "0") + drawn[1:]
        if drawn not in (text, *_SMALL):
            return drawn


def _other_date(text: str, random: np.random.Generator) -> str:
    """The same form: a month for a month, a day from 1 to 28 for a day, an hour for an hour, a year near the year."""
    for _ in range(8):  # by chance the same comes out
        new = re.sub(_MONTH, lambda match: _other_month(match[0], random), text)
        new = re.sub("|".join(DAYS), lambda match: one_of([day for day in DAYS if day != match[0]], random), new)
        new = re.sub(rf"(?<=[周期])[{_WEEK}]", lambda match: one_of([day for day in _WEEK if day != match[0]], random), new)
        if ":" in text:
            new = re.sub(r"\d{1,2}(?=:)", lambda match: _padded(match[0], int(random.integers(1, 13))), new)
            new = re.sub(r"(?<=:)\d{2}", lambda match: one_of(["00", "15", "30", "45"], random), new)
        else:
            new = _ORDINAL.sub(lambda match: _ordinal(int(random.integers(1, 29))), new)
            new = re.sub(r"\d{4}", lambda match: str(int(match[0]) + int(random.integers(-5, 6))), new)
            new = re.sub(r"\d{1,2}(?=月)", lambda match: _padded(match[0], int(random.integers(1, 13))), new)
            parts = re.split(r"(?<!\d)(\d{1,2})(?![\d月]|st|nd|rd|th)", new)
            for place in range(1, len(parts), 2):
                # Where a date has two numbers either may be the month: up to 12 fits both.
                most = 13 if len(parts) > 3 else 29
                parts[place] = _padded(parts[place], int(random.integers(1, most)))
            new = "".join(parts)
        if new != text:
            return new
    return text


def _other_month(name: str, random: np.random.Generator) -> str:
    plain = name.rstrip(".")
    short = len(plain) == 3 and plain != "May"
    rest = [month[:3] if short else month for month in MONTHS if not month.startswith(plain) and not (short and month == "May")]
    return one_of(rest, random) + ("." if name.endswith(".") else "")


def _padded(old: str, new: int) -> str:
    return f"{new:02}" if len(old) == 2 and (old[0] == "0" or new >= 10) else str(new)


def _ordinal(number: int) -> str:
    ending = "th" if 10 < number < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def chosen_slots(found: Sequence[Sequence[Slot]], dialog: Dialog, roles: Collection[str], kinds: Collection[str]) -> list[Slot]:
    """One slot for each different value in the messages of `roles`, of the kinds that can be swapped in this dialog.

    Not those kinds of which a reply holds a value that nobody else has said: it was derived, or said in other words.
    """
    said: dict[str, set[str]] = {}
    replied: dict[str, set[str]] = {}
    for message, row in zip(dialog.messages, found, strict=True):
        for slot in row:
            (replied if message.role == "assistant" else said).setdefault(slot.kind, set()).add(slot.key[1])
    safe = {kind for kind in {*said, *replied} if replied.get(kind, set()) <= said.get(kind, set())}
    own: dict[tuple[str, str], Slot] = {}
    for message, row in zip(dialog.messages, found, strict=True):
        if message.role in roles:
            for slot in row:
                if slot.kind in safe and slot.kind.partition(" ")[0] in kinds:
                    own.setdefault(slot.key, slot)
    return list(own.values())


def capitals(dialogs: Collection[Dialog]) -> tuple[str, ...]:
    """Words that stand with a capital within sentences at least twice and nowhere without one."""
    inside, small = Counter[str](), set[str]()
    for dialog in dialogs:
        for message in dialog.messages:
            for sentence in sentences(message.content):
                for place, word in enumerate(words(sentence)):
                    if word.text[:1].islower():
                        small.add(word.text)
                    elif place and re.fullmatch(r"[^\W\d_][^\W\d_]{2,}", word.text) and word.text[1:].islower():
                        inside[word.text] += 1
    known = {*MONTHS, *DAYS}
    return tuple(sorted(w for w, n in inside.items() if n > 1 and w.lower() not in small | LITTLE and w not in known))
