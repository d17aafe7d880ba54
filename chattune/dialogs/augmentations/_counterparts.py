"""Where the terms of `_sides` stand in texts, and texts with the terms of another side in their place.

What is swapped goes to another side of the same row, everywhere in a dialog: a dialog and its counterpart differ in the side alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chattune.dialogs.augmentations._sides import GENDER, Axis
from chattune.dialogs.augmentations._text import HAN, PROTECTED, chinese
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    import numpy as np

_BEGIN = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
_ARTICLE = re.compile(r"(?<!\w)([Aa]n?)(\s+)$")
_VOWEL = re.compile(r"(?!uni|use|usa|u[sk]\b|eu|ukr|one\b)[aeiou]|hono|hour|heir")
_AFTER = re.compile(r"[ \t]+[\"“‘(\[{*_]*([^\W_]+(?:['’-][^\W\d_]+)*)")
_LET = re.compile(r"\b(?:let|lets|letting)\s+$", re.IGNORECASE)
_TITLE = re.compile(r"\s+[A-Z]")

# Words that begin no name of a thing: behind them "her" was "him", otherwise "his".
_NO_NOUN = frozenset(
    """the a an this that these those and or but nor so yet if then than because since while when where why how who whom whose
    which what as at by for from in into of off on onto out over to up with without about after before between during through
    under above below around across along against among behind beside until till towards upon within though although however i
    you he she it we they me him us them my his your her its our their am is are was were be been being do does did have has
    had will would shall should can could may might must not no never isn't wasn't doesn't didn't won't can't just only also
    too again here there now today tonight tomorrow yesterday soon once always often sometimes ever still already back away
    alone together instead anyway well much more better very either neither both all some any each every something anything
    nothing everything someone anyone please thanks ok okay yes yeah haha lol know feel go come be see get say think want
    understand believe remember laugh cry smile happy sad angry mad crazy""".split()  # noqa: SIM905 - readable
)
# Before these "his" was the thing itself; "his better half" and "his back" are more frequent than the same words behind "hers".
_NO_THING = frozenset(
    """and or but too is was are were isn't wasn't not than to in on at from for with by when because alone instead that as if while
    """.split()  # noqa: SIM905 - readable
)

Shifts = Mapping[str, int]  # axis → how many sides further; an axis that is left out stays as it is


@dataclass(frozen=True)
class Mention:
    """A term in a text: ``text[start:end]``, with the row and the side of its axis, and which capitals it has."""

    axis: str
    side: int
    row: tuple[str, ...]
    style: int
    start: int
    end: int


class Counterparts:
    """The terms of some axes, made ready to be found and swapped."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = {axis.name: axis for axis in axes}
        self._forms: dict[str, tuple[Axis, int, tuple[str, ...], int]] = {}
        for axis in axes:
            for row in axis.rows:
                for side, term in enumerate(row):
                    for style, form in _forms(term):
                        self._forms.setdefault(form, (axis, side, row, style))
                        self._forms.setdefault(form.replace("'", "’"), (axis, side, row, style))
        self._begin: dict[str, list[str]] = {}
        for form in sorted(self._forms, key=lambda own: (-len(own), own)):
            self._begin.setdefault(_first(form), []).append(form)

    def mentions(self, text: str) -> list[Mention]:
        """The terms in a text from left to right, at each place the longest; nothing in what is protected, nothing that stays."""
        found, end = [], 0
        for match in _BEGIN.finditer(text):
            start = match.start()
            if start < end or text[start - 1 : start] == "_":
                continue
            for form in self._begin.get(match[0], ()):
                if text.startswith(form, start) and _ends(text, start + len(form)) and _fits(form, text, start + len(form)):
                    end = start + len(form)
                    axis, side, row, style = self._forms[form]
                    if len(set(row)) > 1:
                        found.append(Mention(axis.name, side, row, style, start, end))
                    break
        taken = [match.span() for match in PROTECTED.finditer(text)] if found else []
        return [own for own in found if all(own.end <= start or end <= own.start for start, end in taken)]

    def text(self, text: str, shifts: Shifts) -> str:
        """`text` with each term of the axes in `shifts` taken so many sides further."""
        pieces, last = [], 0
        for own in self.mentions(text):
            if shift := shifts.get(own.axis, 0) % len(own.row):
                old = text[own.start : own.end]
                term = own.row[(own.side + shift) % len(own.row)]
                if own.axis == GENDER:
                    term = _pronoun(old.lower(), term, text, own)
                new = _STYLES[own.style](term)
                pieces += [_agreeing(text[last : own.start], old, new), new]
                last = own.end
        return "".join([*pieces, text[last:]])

    def dialog(self, dialog: Dialog, shifts: Shifts) -> Dialog:
        """`dialog` with `text` applied to each message; the same object where nothing changes."""
        contents = [self.text(message.content, shifts) for message in dialog.messages]
        if all(new == old.content for new, old in zip(contents, dialog.messages, strict=True)):
            return dialog
        return replace(dialog, messages=tuple(replace(m, content=new) for m, new in zip(dialog.messages, contents, strict=True)))

    def drawn(self, random: np.random.Generator) -> dict[str, int]:
        """Shifts of all axes: to the other side where there are two, to any other where there are more."""
        return {
            name: 1 if len(axis.sides) == 2 else int(random.integers(1, len(axis.sides))) for name, axis in self.axes.items()
        }

    def counts(self, dialog: Dialog, roles: Collection[str] | None = None) -> dict[str, list[int]]:
        """For each axis that messages (of `roles`) mention, how often each of its sides."""
        found: dict[str, list[int]] = {}
        for message in dialog.messages:
            for own in self.mentions(message.content) if roles is None or message.role in roles else ():
                found.setdefault(own.axis, [0] * len(own.row))[own.side] += 1
        return found


def _forms(term: str) -> list[tuple[int, str]]:
    """How a term may be written, each with its style; one that has capitals of its own keeps them."""
    styles = range(len(_STYLES)) if term == term.lower() else (0, len(_STYLES) - 1)
    forms: dict[str, int] = {}
    for style in styles:
        if len(term) > 1 or style < 2:
            forms.setdefault(_STYLES[style](term), style)
    return [(style, form) for form, style in forms.items()]


def _capital(term: str) -> str:
    return term[:1].upper() + term[1:]


def _each_capital(term: str) -> str:
    return " ".join(map(_capital, term.split(" ")))


_STYLES = (str, _capital, _each_capital, str.upper)


def _first(form: str) -> str:
    found = _BEGIN.match(form)
    assert found is not None, form
    return found[0]


def _ends(text: str, end: int) -> bool:
    """Whether a word ends there; a Chinese one may anywhere."""
    following = text[end : end + 1]
    return chinese(text[end - 1] + following) or not (following.isalnum() or following == "_")


def _fits(form: str, text: str, end: int) -> bool:
    """Whether a form is the term here: "Miss" is one before a name only."""
    return form.lower() != "miss" or _TITLE.match(text, end) is not None


def _pronoun(old: str, term: str, text: str, own: Mention) -> str:
    """What English gives one word for and the other side two: "her" is "him" or "his", "his" is "her" or "hers"."""
    if old not in ("her", "his"):
        return term
    following = _AFTER.match(text, own.end)
    word = following[1].lower().replace("’", "'") if following else ""
    if old == "his":
        return "hers" if word in _NO_THING or not word else "her"
    return "him" if word in _NO_NOUN or not word or _LET.search(text[max(0, own.start - 12) : own.start]) else "his"


def _agreeing(before: str, old: str, new: str) -> str:
    """`before` with "a" or "an" at its end as `new` wants it, where it was as `old` wanted it."""
    found = _ARTICLE.search(before[-12:])
    if not found or (len(found[1]) == 2) != _vowel(old) or _vowel(old) == _vowel(new):
        return before
    return before.removesuffix(found[0]) + (f"{found[1]}n" if _vowel(new) else found[1][0]) + found[2]


def _vowel(term: str) -> bool:
    return _VOWEL.match(term.lower()) is not None
