"""Disentangling: which earlier message each message of a channel answers, and so which conversations run through one another
there.

A message is compared with itself (it opens a conversation) and with each of the last `window` messages by features that a
linear score weighs; the best one is taken, in order and for good, so that a log of any length is read with the memory of one
window. What a score may look at is who speaks and to whom, how far back a message is, questions, thanks and shared rare words.
A reply link that the log itself holds is certain.

Source: the task, its gold annotation and its measures are those of Kummerfeld et al. 2019, "A Large-Scale Corpus for
Conversation Disentanglement" (ACL); their linear model chooses among links in the same way. The weights below were fitted on
every second file of the annotated logs, the others measure them: ``.venv/bin/python benchmarks/disentangle.py --fit``.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chattune.dialogs.sessions import WINDOW, is_question

# What a link to an earlier message is judged by, and the weight of each. `own`: by the same speaker; `bare`: addresses nobody.
LINK_WEIGHTS: Mapping[str, float] = {
    "distance": -1.176,  # logarithm of how many messages back
    "minutes": -0.829,  # logarithm of 1 + minutes between the two
    "previous": -0.379,  # the message just before
    "own": 1.065,
    "own_last": 1.619,  # the speaker's own last message
    "own_last_bare": 0.771,  # the same, and this one addresses nobody
    "own_same_target": 2.191,  # an own message to the one who is addressed now
    "addressed": 3.781,  # by the one who is addressed at the beginning of this message
    "addressed_last": 0.308,  # the last by that one
    "mentioned": 1.303,  # by one who is named elsewhere in this message
    "addressed_back": 1.682,  # the last that addresses this speaker since the speaker's own last message
    "mentioned_back": 1.203,  # names this speaker elsewhere than at the beginning
    "other_addressed": -2.255,  # this message addresses somebody else than the one who spoke there
    "addresses_other": -1.09,  # that message addresses somebody else than this speaker or this message does
    "question_answered": 0.364,  # a question of another one, and this is none
    "open_question": 0.531,  # a question of another one that nothing was linked to so far
    "partner": 0.461,  # by the one whom this speaker spoke with last
    "partner_last": 0.636,  # the last by that one
    "partner_back": 0.584,  # by one who spoke with this speaker last
    "overlap": 1.262,  # rare words in common, by another one
    "thanks": 1.268,  # this one thanks, that one was addressed to this speaker
    "reaction": 0.913,  # this one begins with yes, no, ah …, that one is one of the last three
    "my_talk": 0.543,  # by another one, in a conversation that this speaker takes part in
    "my_last_talk": 0.781,  # by another one, in the conversation that this speaker spoke in last
}
# What the opening of a conversation is judged by.
START_WEIGHTS: Mapping[str, float] = {
    "start": -1.916,
    "start_bare": 0.817,
    "start_question": 0.768,
    "start_greeting": 1.431,
    "start_words": 0.385,  # logarithm of 1 + words
    "start_own_age": 0.27,  # logarithm of 1 + minutes since the speaker's own last message
    "start_new_bare": 0.122,  # addresses nobody, by one who said nothing within the window
    "start_waiting": -0.692,  # somebody addressed the speaker since the speaker's own last message
    "start_addressed_unknown": 0.871,  # addresses one who never spoke
}
FEATURES = (*LINK_WEIGHTS, *START_WEIGHTS)
_PLACE = {name: place for place, name in enumerate(FEATURES)}
_LONG_AGO = 6.0  # stands for the age of a message that was never written: about seven hours

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_]+")
_ADDRESS = re.compile(r"^@?([^\s:,;>，：]+)\s*(?:[:,;>]+(?!//)|[，：])")
_GREETS = re.compile(
    r"^(?:hi|hello|hey|hiya|greetings|good (?:morning|evening|afternoon|day)|morning|evening)\b|^(?:你好|您好|大家好|早)",
    re.IGNORECASE,
)
_THANKS = re.compile(r"\b(?:thanks?|thx|ty|cheers|thank you)\b|谢", re.IGNORECASE)
_REACTS = re.compile(
    r"^(?:yes|yeah|yep|yup|no|nope|ok|okay|ah|oh|hm+|lol|heh|haha|right|sure|true|cool|nice|well)\b|^(?:是|对|好|嗯|哦|不)",
    re.IGNORECASE,
)
_VOCABULARY = 200_000  # words whose frequency is kept


@dataclass(frozen=True, slots=True)
class _Read:
    """A message as the features see it. `to` is the speaker addressed at its beginning, ``-1`` for nobody; `named` those named
    later."""

    speaker: int
    to: int
    named: frozenset[int]
    stranger: bool
    question: bool
    words: frozenset[str]
    time: float


class Linker:
    """Links messages of one channel, one after the other. Not for several channels at once: make one for each."""

    def __init__(self, window: int = WINDOW, weights: Mapping[str, float] | None = None) -> None:
        given = {**LINK_WEIGHTS, **START_WEIGHTS} if weights is None else weights
        self._weights = np.array([given[name] for name in FEATURES])
        self.window, self.count = window, 0
        self._speakers: dict[str, int] = {}
        self._spaced: dict[str, int] = {}  # names of several words, which only a whole comparison finds
        self._last: list[int] = []  # for each speaker: number of the last message
        self._partner: NDArray[np.int64] = np.full(16, -1)  # for each speaker: whom it spoke with last
        # A window that slides: speaker, to, question, talk, how often it was answered, whether it is the speaker's last.
        self._rows = np.zeros((6, 2 * window), np.int64)
        self._logs = np.log(np.arange(window, 0, -1))
        self._times = np.zeros(2 * window)
        self._first = 0  # number of the message in row 0
        self._kept: deque[_Read] = deque()  # the messages of the window
        self._naming: dict[int, deque[int]] = {}  # speaker → messages of the window that name it
        self._places: dict[str, deque[int]] = {}  # word → messages of the window that hold it
        self._frequency: Counter[str] = Counter()

    def push(self, speaker: str, text: str, time: float | None = None, answers: int | None = None) -> int:
        """Number (from 0) of the message that this one answers, or its own number when it opens a conversation.

        `time` is in seconds on any clock; without one the order alone counts. `answers`: the number, where the log itself says
        it.
        """
        read = self.see(speaker, text, time)
        if answers is None:
            best = int(np.argmax(self.features(read, text) @ self._weights))
            low = self.count - len(self._kept)
            answers = self.count if best == len(self._kept) else low + best
        self.take(read, answers)
        return answers

    def features(self, read: _Read, text: str) -> NDArray[np.float64]:
        """(messages in the window + 1, features); the last row is the opening of a conversation."""
        count = len(self._kept)
        table = np.zeros((len(FEATURES), count + 1))
        low = self.count - count
        last = self._last[read.speaker]
        bare = read.to < 0
        if count:
            for name, values in self._links(read, text, low, last, bare).items():
                table[_PLACE[name], :count] = values
        for name, value in self._start(read, text, low, last, bare).items():
            table[_PLACE[name], count] = value
        return table.T

    def take(self, read: _Read, answers: int) -> None:
        """Remember a message and what it was linked to."""
        number = self.count
        row = number - self._first
        if row == len(self._times):
            self._rows[:, : self.window] = self._rows[:, self.window :]
            self._times[: self.window] = self._times[self.window :]
            self._first += self.window
            row -= self.window
        target = answers - self._first
        inside = answers < number and target >= 0
        self._rows[:, row] = (read.speaker, read.to, read.question, self._rows[3, target] if inside else number, 0, 1)
        self._times[row] = read.time
        if (before := self._last[read.speaker] - self._first) >= 0:
            self._rows[5, before] = 0
        other = inside and int(self._rows[0, target]) != read.speaker
        if other:
            self._rows[4, target] += 1
        if read.to >= 0:
            self._partner[read.speaker] = read.to
        elif other:
            self._partner[read.speaker] = self._rows[0, target]
        self._last[read.speaker] = number
        for word in read.words:
            self._places.setdefault(word, deque()).append(number)
        self._frequency.update(read.words)
        for one in read.named:
            self._naming.setdefault(one, deque()).append(number)
        self._kept.append(read)
        self.count += 1
        if len(self._kept) > self.window:
            self._forget(self._kept.popleft())

    def _links(self, read: _Read, text: str, low: int, last: int, bare: bool) -> dict[str, Any]:
        """Features of the links to each message of the window, oldest first."""
        begin, end = low - self._first, self.count - self._first
        speaker, to, question, talk, answered, final = self._rows[:, begin:end]
        count = end - begin
        minutes = np.maximum(0.0, read.time - self._times[begin:end]) / 60
        own = speaker == read.speaker
        others = ~own
        final = final == 1
        addressed = (speaker == read.to) & (not bare)
        same_target = (to == read.to) & (not bare)
        to_me = to == read.speaker
        addressed_back = np.zeros(count)
        since = max(0, last + 1 - low)
        addressed_back[since + np.flatnonzero(to_me[since:])[-1:]] = 1
        mentioned_back = np.zeros(count)
        mentioned_back[[number - low for number in self._naming.get(read.speaker, ())]] = 1
        previous = np.zeros(count)
        previous[-1] = 1
        reaction = np.zeros(count)
        reaction[-3:] = others[-3:] & (_REACTS.search(text) is not None)
        partner = (speaker == self._partner[read.speaker]) & bare
        asked = (question == 1) & others
        mine = _is_one_of(talk, set(talk[own].tolist()))
        return {
            "distance": self._logs[-count:],
            "minutes": np.log1p(minutes),
            "previous": previous,
            "own": own,
            "own_last": own & final,
            "own_last_bare": own & final & bare,
            "own_same_target": own & same_target,
            "addressed": addressed,
            "addressed_last": addressed & final,
            "mentioned": _is_one_of(speaker, read.named),
            "addressed_back": addressed_back,
            "mentioned_back": mentioned_back,
            "other_addressed": (speaker != read.to) & others & (not bare),
            "addresses_other": (to >= 0) & ~to_me & others & ~same_target,
            "question_answered": asked & (not read.question),
            "open_question": asked & (answered == 0),
            "partner": partner,
            "partner_last": partner & final,
            "partner_back": (self._partner[speaker] == read.speaker) & bare,
            "overlap": self._overlap(read, low) * others,
            "thanks": to_me & others & (_THANKS.search(text) is not None),
            "reaction": reaction,
            "my_talk": mine & others,
            "my_last_talk": (talk == self._rows[3, last - self._first]) & others if last >= low else False,
        }

    def _start(self, read: _Read, text: str, low: int, last: int, bare: bool) -> dict[str, float]:
        """Features of the opening of a conversation."""
        age = _LONG_AGO
        waiting = False
        if last >= low:
            age = math.log1p(max(0.0, read.time - self._times[last - self._first]) / 60)
        if self._kept:
            since = max(low, last + 1) - self._first
            waiting = bool((self._rows[1, since : self.count - self._first] == read.speaker).any())
        return {
            "start": 1.0,
            "start_bare": bare,
            "start_question": read.question,
            "start_greeting": _GREETS.search(text) is not None,
            "start_words": math.log1p(len(text.split())),
            "start_own_age": age,
            "start_new_bare": bare and last < low,
            "start_waiting": waiting,
            "start_addressed_unknown": read.stranger,
        }

    def _overlap(self, read: _Read, low: int) -> NDArray[np.float64]:
        """For each message of the window: logarithm of 1 + how rare the words are that it shares with this one."""
        shared = np.zeros(self.count - low)
        for word in read.words:
            places = self._places.get(word)
            if places and (len(word) > 2 or word >= "\u3400"):
                rarity = math.log((self.count + 1) / self._frequency[word]) - 2
                if rarity > 0:
                    for number in places:
                        shared[number - low] += rarity
        return np.log1p(shared)

    def see(self, speaker: str, text: str, time: float | None) -> _Read:
        """A message as its features see it; it is not remembered before `take`."""
        me = self._number(speaker)
        lowered = text.casefold()
        named: set[int] = set()
        to, stranger = -1, False
        if match := _ADDRESS.match(lowered):
            to = self._speakers.get(match[1], -1)
            stranger = to < 0
        pieces = [piece.strip(".,:;!?()<>@'\"，。：！？") for piece in lowered.split()]
        if to < 0 and len(pieces) > 1 and (lowered.startswith("@") or self._is_name(pieces[0])):
            to = self._speakers.get(pieces[0], -1)
        named.update(self._speakers[piece] for piece in pieces if self._is_name(piece))
        for name, number in self._spaced.items():
            if name in lowered:
                if lowered.lstrip("@ ").startswith(name):
                    to, stranger = number, False
                named.add(number)
        to = -1 if to == me else to
        if time is None:
            time = float(self._times[self.count - 1 - self._first]) if self.count else 0.0
        return _Read(me, to, frozenset(named - {me, to}), stranger, is_question(text), frozenset(_WORD.findall(lowered)), time)

    def _is_name(self, piece: str) -> bool:
        """Whether a word is a speaker's name, and not just a word that everybody uses."""
        long = len(piece) > 2 or (len(piece) == 2 and piece >= "\u3400")
        return long and piece in self._speakers and self._frequency[piece] <= 3 + 0.01 * self.count

    def _number(self, speaker: str) -> int:
        name = speaker.casefold().strip()
        if name not in self._speakers:
            number = self._speakers[name] = len(self._speakers)
            self._last.append(-1)
            if number == len(self._partner):
                self._partner = np.concatenate([self._partner, np.full(number, -1)])
            if len(name.split()) > 1 and len(self._spaced) < 1000:
                self._spaced[name] = number
        return self._speakers[name]

    def _forget(self, read: _Read) -> None:
        """Let a message go that lies before the window."""
        for index, keys in ((self._places, read.words), (self._naming, read.named)):
            for key in keys:
                index[key].popleft()  # type: ignore[index]
                if not index[key]:  # type: ignore[index]
                    del index[key]  # type: ignore[arg-type]
        if len(self._frequency) > _VOCABULARY:
            seldom = [word for word, count in self._frequency.items() if count == 1 and word not in self._places]
            for word in seldom:
                del self._frequency[word]


def _is_one_of(values: NDArray[np.int64], some: Iterable[int]) -> NDArray[np.bool_]:
    """Where `values` are among a few numbers; for so few much faster than NumPy's own."""
    found = np.zeros(len(values), bool)
    for one in some:
        found |= values == one
    return found


def conversations(links: list[int]) -> list[int]:
    """For each message the number of the one that opens its conversation, from the links of all."""
    opened: list[int] = []
    for number, answers in enumerate(links):
        opened.append(number if answers == number else opened[answers])
    return opened
