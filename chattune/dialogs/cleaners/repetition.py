"""Repetition: of characters, syllables, words and lines within a message, and of whole replies within a dialog."""

from __future__ import annotations

import re
from collections import Counter

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, dropped, rewritten
from chattune.dialogs.cleaners._text import HAN, PICTURES, URL, outside_code, settled
from chattune.dialogs.dialog import Dialog, Drop

_WORD = re.compile(rf"{HAN.pattern}|[^\W_]+")
_GRAM = 4  # words, or Chinese characters, of a phrase whose repetition is counted
_ENOUGH = 20  # words from which the share of repeated phrases is judged


class Repetition(Cleaner):
    """Shorten what is repeated within a message (sooooo, hahahaha, no no no no, !!!!!), and leave out dialogs that run in circles.

    Digits, code in backticks, links, and rules such as ---- stay. Running in circles: one reply several times in a dialog, or a
    reply that mostly repeats its own phrases, as generators that got stuck do.
    Helps when: chats are emphatic, logs hold canned replies, or models wrote the data.
    Hurts when: repetition is meant: songs, drills, menus that rightly come again.
    Cost: 30 µs a message.   Start with: the defaults.
    Source: the repetition rules of Gopher, Rae et al. 2021, arXiv:2112.11446, table A1.
    """

    longest_run: int = setting(3, "times that a character, a syllable or a word may stand in a row", low=2)
    most_repeated: float = setting(0.6, "share of a reply's four-word phrases that have stood in it before", low=0.0, high=1.0)
    same_reply: int = setting(3, "times that the assistant may say the same in a dialog", low=1)
    reply_length: int = setting(12, "characters from which saying the same is counted; shorter replies rightly come again", low=1)

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        said = [message.content for message in dialog.messages if message.role == "assistant"]
        shares = [_repeated(content) for content in said]
        worst = max(shares, default=0.0)
        if worst > self.most_repeated:
            return dropped(dialog, "repetitive_reply", f"{worst:.0%} of a reply's phrases stood in it before")
        count = Counter(" ".join(content.casefold().split()) for content in said if len(content) >= self.reply_length)
        often = max(count.values(), default=0)
        if often > self.same_reply:
            return dropped(dialog, "same_reply", f"one reply {often} times")
        cap = _Cap(self.longest_run)
        return rewritten(dialog, lambda text: settled(cap, text))


class _Cap:
    """Caps runs in a text at `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        marks = re.escape("!?.~！？。～…，、,")
        self.character = re.compile(rf"([^\W\d_]|[{marks}{PICTURES}])\1{{{most},}}")
        self.syllable = re.compile(rf"([^\W\d_]{{2,4}}?)\1{{{most},}}", re.I)
        self.word = re.compile(rf"\b([^\W\d_]{{1,20}})((?:[ \t,，!！]{{1,3}}\1){{{most - 1}}})(?:[ \t,，!！]{{1,3}}\1)+\b", re.I)

    def __call__(self, text: str) -> str:
        return outside_code(text, self._outside_links)

    def _outside_links(self, text: str) -> str:
        if "://" not in text and "www." not in text.lower():
            return self._capped(text)
        pieces, last = [], 0
        for link in URL.finditer(text):
            pieces += [self._capped(text[last : link.start()]), link[0]]
            last = link.end()
        return "".join([*pieces, self._capped(text[last:])])

    def _capped(self, text: str) -> str:
        text = self.character.sub(lambda found: found[1] * self.most, text)
        text = self.syllable.sub(lambda found: found[0][: len(found[1]) * self.most], text)
        text = self.word.sub(lambda found: found[1] + found[2], text)
        return self._lines(text)

    def _lines(self, text: str) -> str:
        """At most so many equal lines in a row; empty lines and rules of signs stay."""
        if "\n" not in text:
            return text
        kept: list[str] = []
        run = 0
        for line in text.split("\n"):
            run = run + 1 if kept and line == kept[-1] else 1
            if run <= self.most or not any(map(str.isalnum, line)):
                kept.append(line)
        return "\n".join(kept)


def _repeated(text: str) -> float:
    """Share of the phrases of `text` that have stood in it before."""
    words = [word.casefold() for word in _WORD.findall(text)]
    if len(words) < _ENOUGH:
        return 0.0
    grams = [tuple(words[place : place + _GRAM]) for place in range(len(words) - _GRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams)
