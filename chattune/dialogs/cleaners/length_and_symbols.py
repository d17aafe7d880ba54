"""Dialogs that are too short or too long, or whose replies are hardly text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import model_validator

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, dropped
from chattune.dialogs.cleaners._text import EMOJI, URL, without_code
from chattune.dialogs.dialog import Dialog, Drop

_RULE = re.compile(r"^[ \t|:+=-]{3,}$", re.M)  # below the head of a table
_ENOUGH = 12  # characters that a message needs before a share of it is judged


class LengthAndSymbols(Cleaner):
    """Leave out dialogs that are too short or too long, or hold a reply of mostly symbols, digits, capitals or links.

    Emoji are no symbols; code in backticks and the rules of tables are not counted; a share is judged from 12 characters on.
    Helps when: a dump holds tables, keyboard noise, shouting, link lists.   Hurts when: replies are rightly formulas or numbers.
    Cost: 10 µs a message.   Start with: the defaults, which only the clearest cases reach.
    Source: the rules of Gopher, Rae et al. 2021, arXiv:2112.11446, table A1, and of C4, Raffel et al. 2020, arXiv:1910.10683.
    """

    roles: tuple[Literal["system", "user", "assistant", "tool"], ...] = setting(("assistant",), "whose messages are looked at")
    least_messages: int = setting(2, "messages that a dialog has at the least", low=1)
    most_messages: int | None = setting(None, "messages that a dialog has at the most; none: any number", low=1)
    least_characters: int = setting(1, "characters that a message has at the least, white space not counted", low=0)
    most_characters: int | None = setting(50_000, "characters that a message has at the most; none: any number", low=1)
    most_symbols: float = setting(0.6, "share of a message's characters that are neither letters nor digits", low=0.0, high=1.0)
    most_digits: float = setting(0.7, "share of a message's characters that are digits", low=0.0, high=1.0)
    most_capitals: float = setting(0.9, "share of a message's letters that are capitals", low=0.0, high=1.0)
    only_links: bool = setting(False, "whether messages that are nothing but links may stay")

    @model_validator(mode="after")
    def _room_between(self) -> LengthAndSymbols:
        for name, least, most in (
            ("messages", self.least_messages, self.most_messages), ("characters", self.least_characters, self.most_characters),
        ):  # fmt: skip
            if most is not None and least > most:
                raise ValueError(f"asks for at least {least} and at most {most} {name}")
        return self

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        count = len(dialog.messages)
        if count < self.least_messages or (self.most_messages is not None and count > self.most_messages):
            reason = "too_few_messages" if count < self.least_messages else "too_many_messages"
            return dropped(dialog, reason, f"{count} messages")
        for message in dialog.messages:
            if message.role in self.roles:
                for reason, detail in self._faults(message.content):
                    return dropped(dialog, reason, f"{message.role}, {detail}")
        return dialog

    def _faults(self, text: str) -> Iterator[tuple[str, str]]:
        written = "".join(text.split())
        if len(written) < self.least_characters:
            yield "too_short", f"{len(written)} characters"
        if self.most_characters is not None and len(text) > self.most_characters:
            yield "too_long", f"{len(text)} characters"
        rest = URL.sub("", text)
        if not self.only_links and rest != text and not re.search(r"\w", rest):
            yield "only_links", f"{len(URL.findall(text))} links"
        counted = "".join(_RULE.sub("", EMOJI.sub("", without_code(rest))).split())
        if len(counted) < _ENOUGH:
            return
        digits = sum(map(str.isdigit, counted))
        symbols = sum(not character.isalnum() for character in counted)
        letters = sum(map(str.isalpha, counted))  # Chinese ones, too: an abbreviation in a Chinese text does not shout
        for reason, some, all_of, most in (
            ("symbols", symbols, len(counted), self.most_symbols),
            ("digits", digits, len(counted), self.most_digits),
            ("capitals", sum(map(str.isupper, counted)), letters, self.most_capitals),
        ):
            if all_of >= _ENOUGH and some > most * all_of:
                yield reason, f"{some} of {all_of} characters"
