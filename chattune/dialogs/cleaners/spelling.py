"""Spelling repair, with a log of every change."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import model_validator

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, Cleaning
from chattune.dialogs.cleaners._text import outside_code, settled
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.spelling import Chinese, English, confusions, english_dictionary, words_of


class Spelling(Cleaner):
    """Repair spelling where there is little doubt: English words by edit distance and frequency, Chinese by confusion sets.

    English: a word that the dictionary lacks becomes the usual word next to it (recieve, dont); names, abbreviations and code
    stay. Chinese: a character that stands alone becomes one that it is confused with, where that makes a much likelier word with
    its neighbours (因该 → 应该). Every change stands in ``changes.jsonl`` of the run, with the text before: nothing is changed
    silently, and `personal_data` and `secrets` are to be named before it.
    Helps when: replies were typed in haste.   Hurts when: slang and product names matter: list them in a file of `words`.
    Cost: 10 µs a message and 2 s for the dictionary; Chinese 0.3 ms.   Start with: the defaults, and a look at the log.
    Source: SymSpell (Garbe) by symspellpy and its dictionary; confusion sets as in SIGHAN's Chinese spelling checks; word
    frequencies of jieba.
    """

    logs_changes: ClassVar[bool] = True

    roles: tuple[Literal["system", "user", "assistant", "tool"], ...] = setting(
        ("assistant",), "whose messages are repaired; what users mistype is what the bot is to understand"
    )
    english: bool = setting(True, "repair English; needs the package symspellpy")
    confusions: tuple[str, ...] = setting(
        (), "files of Chinese confusion sets, on each line a character and those confused with it; none: Chinese stays as it is"
    )
    words: tuple[str, ...] = setting((), "files of words that are right, one a line")
    distance: int = setting(1, "letters that an English word may be off", low=1, high=2)
    least_length: int = setting(
        5, "letters that an English word has at the least to be repaired; a missing apostrophe is seen from 4 on", low=3
    )
    ratio: float = setting(10.0, "times that the word put in must be as frequent as the next one that it could be", low=1.0)
    margin: float = setting(7.25, "nats by which a Chinese reading must be likelier than what stands there", above=0.0)

    @model_validator(mode="after")
    def _something_to_do(self) -> Spelling:
        if not self.english and not self.confusions:
            raise ValueError("repairs nothing: set english, or name files in confusions")
        return self

    def files(self) -> tuple[Path, ...]:
        return (*map(Path, self.confusions), *map(Path, self.words))

    def begin(self, dialogs: Collection[Dialog]) -> Cleaning:
        _correctors(self)  # what is missing or broken is told before anything is read
        return _Correcting(self)

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return _Correcting(self).clean(dialog)


@dataclass(frozen=True)
class _Correcting:
    settings: Spelling

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        correctors = _correctors(self.settings)

        def once(text: str) -> str:
            for corrector in correctors:
                text = outside_code(text, corrector)
            return text

        roles = self.settings.roles
        messages = tuple(
            replace(message, content=settled(once, message.content)) if message.role in roles else message
            for message in dialog.messages
        )
        return dialog if messages == dialog.messages else replace(dialog, messages=messages)


@cache
def _correctors(settings: Spelling) -> tuple[Callable[[str], str], ...]:
    """One for each language, made once in each process."""
    known = words_of(settings.words)
    found: list[Callable[[str], str]] = []
    if settings.english:
        english_dictionary(settings.distance)
        found.append(English(known, settings.distance, settings.least_length, settings.ratio))
    if settings.confusions:
        found.append(Chinese(confusions(settings.confusions), settings.margin, known))
    return tuple(found)
