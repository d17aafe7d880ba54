"""Sessions: from the lines of a log to conversations, and to who answers in them. What is inferred is said.

A log is a stream of `Said` (a message), `Aside` (a line that is none: somebody joined, a picture that was left out) and `Drop`.
It is read twice: a `Survey` looks at all silences and at who asks and who answers, and `conversations` then cuts the stream,
with one conversation (or, where several run through one another, one window of them) in memory.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from chattune.dialogs.dialog import Drop

if TYPE_CHECKING:
    from chattune.dialogs.disentangle import Linker

GAP = 3600.0  # seconds of silence that end a conversation where the log does not tell of a better figure
SHORTEST, LONGEST = 600.0, 12 * 3600.0  # limits of what is inferred
_STEPS = 2  # bins of the histogram of silences to each doubling
_ENOUGH = 100  # silences from which on something is inferred
_PEOPLE = 64  # people answered, of whom a count is kept
DAY = 86400.0
WINDOW = 100  # messages back that a reply may reach
_ASKS = re.compile(r"(?:how|what|where|why|who|when|which|can|could|does|do|is|are|any|has|should|would|will)\b")
_WANTED = ("anyone", "anybody", "someone", "somebody", " how do", " how can", " how to", "请问", "怎么", "如何", "为什么", "有人")


def is_question(text: str) -> bool:
    """Whether a message asks for something, in English or Chinese; by cues, not by grammar."""
    if "?" in text or "？" in text or text.rstrip()[-1:] in ("吗", "呢", "么"):
        return True
    lowered = text.lower()
    return _ASKS.match(lowered) is not None or any(word in lowered for word in _WANTED)


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a log, at `line` (from 1). `time`: seconds on the log's own clock. `role`: what the log itself says of the
    speaker.

    `id` is how other messages call this one, `answers` the id of the one that it answers, or of its thread, where the log holds
    them.
    """

    line: int
    speaker: str
    text: str
    time: float | None = None
    id: str = ""
    answers: str = ""
    role: str = ""
    within: str = ""  # the file, where a log consists of several


@dataclass(frozen=True, slots=True)
class Aside:
    """A line of a log that is no message, and why: ``system_line``, ``media`` …; counted in the conversation that it stands
    in."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Room:
    """Where the log of another channel or chat begins, in a file that holds several."""

    line: int
    name: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was inferred in reading and is to be said."""

    text: str


Event = Said | Aside | Room | Note | Drop


@dataclass
class Conversation:
    """Messages that belong together, in order, and how many lines beside them were left out for which reason.

    `thread`: what the log calls the thread that this is, or a piece of; `room`: the channel or chat.
    """

    said: list[Said] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    size: int = 0
    thread: str = ""
    room: str = ""

    def add(self, said: Said) -> None:
        self.said.append(said)
        self.size += len(said.text)


@dataclass(frozen=True)
class Names:
    """Names whose role is known, in lower case."""

    assistant: frozenset[str]
    user: frozenset[str]
    system: frozenset[str]

    @classmethod
    def of(cls, assistant: Iterable[str], user: Iterable[str], system: Iterable[str]) -> Names:
        return cls(*(frozenset(name.casefold() for name in names) for names in (assistant, user, system)))

    def role(self, name: str) -> str | None:
        """The role that a name says."""
        name = name.casefold()
        for role in ("user", "assistant", "system"):
            if name in getattr(self, role):
                return role
        return None


@dataclass
class _Speaker:
    """What one speaker did in a log."""

    messages: int = 0
    asks: int = 0
    answers: int = 0
    people: set[str] = field(default_factory=set)
    role: str = ""


@dataclass(frozen=True)
class Plan:
    """How a log is cut and who answers in it.

    `gap`: seconds of silence that end a conversation; `gap_from`: ``given``, ``inferred`` or ``default``. `certain`: roles by
    name or by what the log says; `agents`: those who answer, by what they do; `pair`: of a log of two, the one who answers.
    """

    gap: float
    gap_from: str
    certain: Mapping[str, str]
    agents: frozenset[str] = frozenset()
    pair: str | None = None
    pair_from: str = ""
    speakers: int = 0

    def roles(self, said: Iterable[Said]) -> tuple[dict[str, str], str]:
        """The role of each speaker in one conversation, and what it follows from: ``named``, ``behaviour``, ``second`` or
        ``opener``."""
        speakers = list(dict.fromkeys(one.speaker for one in said))
        roles = {name: self.certain[name] for name in speakers if name in self.certain}
        others = [name for name in speakers if name not in roles]
        if not others or "assistant" in roles.values():
            return {name: roles.get(name, "user") for name in speakers}, "named"
        agents = [name for name in others if name in self.agents]
        if agents and (len(agents) < len(others) or "user" in roles.values()):
            return {name: roles.get(name, "assistant" if name in agents else "user") for name in speakers}, "behaviour"
        if self.pair in others:
            return {name: roles.get(name, "assistant" if name == self.pair else "user") for name in speakers}, self.pair_from
        # Beside a known user strangers answer; among strangers the one who opens asks, the others answer.
        asks = set() if "user" in roles.values() else {others[0]}
        how = "named" if "user" in roles.values() else "opener"
        return {name: roles.get(name, "user" if name in asks else "assistant") for name in speakers}, how

    def told(self) -> str:
        """What was inferred, in one line."""
        how = {"given": "as set", "inferred": "inferred from the silences", "default": "the default: silences tell of no other"}
        parts = [f"a conversation ends after {self.gap / 60:.0f} minutes of silence ({how[self.gap_from]})"]
        named = sorted(name for name, role in self.certain.items() if role == "assistant")
        if named:
            parts.append(f"{_some(named)} by name the assistant")
        if self.agents:
            parts.append(f"{_some(sorted(self.agents))} by what they do: they answer many and ask little")
        if self.pair is not None:
            why = "answers more than it asks" if self.pair_from == "behaviour" else "is the second to speak"
            parts.append(f"{self.pair[:40]} is the assistant: {why}")
        if not (named or self.agents or self.pair):
            parts.append("whoever opens a conversation asks in it, the others answer")
        return "; ".join(parts)


class Survey:
    """First reading of a log: its silences, and for each speaker who was asked and who answered. Bounded by the number of
    speakers."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._speakers: dict[str, _Speaker] = {}
        self._silences: Counter[int] = Counter()
        self._before: Said | None = None

    def see(self, event: Event) -> None:
        """Take one event into account."""
        if not isinstance(event, Said):
            return
        own = self._speakers.setdefault(event.speaker, _Speaker())
        if not own.messages or event.role:
            own.role = own.role or event.role or self._names.role(event.speaker) or ""
        own.messages += 1
        asks = is_question(event.text)
        own.asks += asks
        before, self._before = self._before, event
        if before is None:
            return
        if before.time is not None and event.time is not None:
            self._silences[int(_STEPS * math.log2(max(1.0, event.time - before.time)))] += 1
        if before.speaker != event.speaker and not asks and is_question(before.text):
            own.answers += 1
            if len(own.people) < _PEOPLE:
                own.people.add(before.speaker)

    def note(self, speaker: str, answered: str | None, role: str = "") -> None:
        """Take into account that one opened a thread (nobody `answered`) or wrote in one that another opened."""
        own = self._speakers.setdefault(speaker, _Speaker())
        own.messages += 1
        own.role = own.role or role or self._names.role(speaker) or ""
        own.asks += answered is None
        if answered is not None and answered != speaker:
            own.answers += 1
            if len(own.people) < _PEOPLE:
                own.people.add(answered)

    def settled(self, gap: float | None = None) -> Plan:
        """What follows from all of it; `gap` in seconds where it is set."""
        certain = {name: one.role for name, one in self._speakers.items() if one.role}
        unknown = {name: one for name, one in self._speakers.items() if not one.role}
        found = None if gap is not None else valley(self._silences)
        seconds, gap_from = (gap, "given") if gap is not None else (found, "inferred") if found is not None else (GAP, "default")
        pair, pair_from, agents = None, "", frozenset[str]()
        if len(self._speakers) == 2 and len(unknown) == 2:
            (first, one), (second, other) = unknown.items()
            lead = (other.answers - other.asks) - (one.answers - one.asks)
            clear = abs(lead) >= 5 + 0.02 * (one.messages + other.messages)
            pair, pair_from = (second if lead > 0 or not clear else first), "behaviour" if clear else "second"
        elif len(unknown) > 2:
            agents = frozenset(
                name for name, one in unknown.items() if len(one.people) >= 3 and one.answers >= 5 and one.answers >= 2 * one.asks
            )
        return Plan(seconds, gap_from, certain, agents, pair, pair_from, len(self._speakers))


def valley(silences: Mapping[int, int]) -> float | None:
    """Seconds at the bottom between short silences and long ones, or nothing when they do not part.

    `silences` counts them by ``int(2 log2 seconds)``. Smoothed over three bins, the lowest one between two tops is taken when
    it is not higher than half the lower top and lies within ten minutes and twelve hours.
    """
    if sum(silences.values()) < _ENOUGH:
        return None
    size = max(silences) + 3
    smooth = [sum(silences.get(place + shift, 0) for shift in (-1, 0, 1)) / 3 for place in range(size)]
    best: tuple[float, float] | None = None
    for place in range(1, size - 1):
        seconds = 2 ** ((place + 0.5) / _STEPS)
        if SHORTEST <= seconds <= LONGEST:
            top = min(max(smooth[:place]), max(smooth[place + 1 :]))
            if top >= 5 / 3 and smooth[place] <= top / 2:
                depth = smooth[place] / top
                best = min(best, (depth, seconds)) if best else (depth, seconds)
    return best[1] if best else None


def conversations(
    events: Iterable[Said | Aside | Drop], plan: Plan, *, days: bool = False, threads: bool = False, linker: Linker | None = None,
    limit: int = 2**24,
) -> Iterator[Conversation | Drop]:
    """The conversations of a log. `days`: a new day ends one. `threads`: what a message answers is the name of its thread,
    which is a conversation of its own. `linker`: conversations that run through one another are separated.

    No conversation has more than `limit` characters: the next one begins there. Asides are counted in the conversation that was
    spoken in last; those of a log that says nothing at all come back as one `Drop`.
    """
    if linker is not None:
        cutter: _Cutter = _Separated(plan, days, linker, limit)
    else:
        cutter = _Threaded(plan, days, limit) if threads else _InOrder(plan, days, limit)
    waiting: Counter[str] = Counter()
    first = 0
    for event in events:
        if isinstance(event, Drop):
            yield event
        elif isinstance(event, Aside):
            first = first or event.line
            counts = waiting if cutter.current is None else cutter.current.left_out
            counts[event.reason] += 1
        else:
            yield from cutter.take(event)
            if waiting and cutter.current is not None:
                cutter.current.left_out.update(waiting)
                waiting.clear()
    yield from cutter.rest()
    if waiting:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(waiting.items()))
        yield Drop("no_message", "", first, f"nobody says anything; left out: {told}")


class _Cutter(Protocol):
    """Takes messages in order; `current` is the conversation that the last one went to."""

    current: Conversation | None

    def take(self, said: Said) -> Iterator[Conversation]: ...

    def rest(self) -> Iterator[Conversation]: ...


class _InOrder:
    """One conversation after the other, cut by silence and by days."""

    def __init__(self, plan: Plan, days: bool, limit: int) -> None:
        self._plan, self._days, self._limit = plan, days, limit
        self.current: Conversation | None = None
        self._plain: Conversation | None = None
        self._time: float | None = None

    def take(self, said: Said) -> Iterator[Conversation]:
        """What ended before this message."""
        full = self._plain is not None and self._plain.size + len(said.text) > self._limit
        if self._plain is not None and (full or _parted(self._time, said.time, self._plan.gap, self._days)):
            ended, self._plain = self._plain, None
            yield ended
        self.current = self._plain = self._plain or Conversation()
        self._plain.add(said)
        self._time = said.time if said.time is not None else self._time

    def rest(self) -> Iterator[Conversation]:
        if self._plain is not None:
            yield self._plain


class _Threaded(_InOrder):
    """Threads by their names, and what stands in none cut by silence. Threads stay open to the end, as long as there is room
    for them: when all together hold four times the limit, the one that was silent longest is over; what follows in it has the
    same name."""

    def __init__(self, plan: Plan, days: bool, limit: int) -> None:
        super().__init__(plan, days, limit)
        self._threads: OrderedDict[str, Conversation] = OrderedDict()
        self._size = 0

    def take(self, said: Said) -> Iterator[Conversation]:
        if not said.answers:
            yield from super().take(said)
            return
        open_one = self._threads.get(said.answers)
        if open_one is not None and open_one.size + len(said.text) > self._limit:
            yield self._ended(said.answers)
        self.current = self._threads.setdefault(said.answers, Conversation(thread=said.answers))
        self.current.add(said)
        self._size += len(said.text)
        self._threads.move_to_end(said.answers)
        while self._size > 4 * self._limit and len(self._threads) > 1:
            yield self._ended(next(iter(self._threads)))

    def rest(self) -> Iterator[Conversation]:
        yield from self._threads.values()
        yield from super().rest()

    def _ended(self, name: str) -> Conversation:
        ended = self._threads.pop(name)
        self._size -= ended.size
        return ended


class _Separated:
    """Conversations that run through one another; one is over when no later message can be linked to it any more."""

    def __init__(self, plan: Plan, days: bool, linker: Linker, limit: int) -> None:
        self._plan, self._days, self._limit, self._linker = plan, days, limit, linker
        self._open: OrderedDict[int, Conversation] = OrderedDict()  # by key, the one spoken in longest ago first
        self._newest: dict[int, int] = {}  # key → number of its last message
        self._key: OrderedDict[int, int] = OrderedDict()  # number of a message in the window → key
        self._times: dict[int, float | None] = {}
        self._numbers: dict[str, int] = {}  # id of a message in the window → its number
        self.current: Conversation | None = None

    def take(self, said: Said) -> Iterator[Conversation]:
        """What can have no further message once this one is there."""
        number = self._linker.count
        known = self._numbers.get(said.answers) if said.answers else None
        answers = self._linker.push(said.speaker, said.text, said.time, known)
        key = self._key.get(answers, number)
        if answers != number and known is None and _parted(self._times.get(answers), said.time, self._plan.gap, self._days):
            key = number
        if key in self._open and self._open[key].size + len(said.text) > self._limit:
            key = number
        self.current = self._open.setdefault(key, Conversation())
        self.current.add(said)
        self._open.move_to_end(key)
        self._newest[key], self._key[number], self._times[number] = number, key, said.time
        if said.id:
            self._numbers[said.id] = number
        yield from self._over(number - self._linker.window)

    def rest(self) -> Iterator[Conversation]:
        yield from sorted(self._open.values(), key=lambda one: one.said[0].line)

    def _over(self, before: int) -> Iterator[Conversation]:
        while self._key and next(iter(self._key)) <= before:
            number, _ = self._key.popitem(last=False)
            del self._times[number]
        if len(self._numbers) > 4 * self._linker.window:
            self._numbers = {name: number for name, number in self._numbers.items() if number > before}
        while self._open:
            key = next(iter(self._open))
            if self._newest[key] > before:
                return
            del self._newest[key]
            yield self._open.pop(key)


def _parted(before: float | None, now: float | None, gap: float, days: bool) -> bool:
    if before is None or now is None:
        return False
    return now - before > gap or (days and before // DAY != now // DAY)


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:5])
    return f"{shown} and {len(names) - 5} more are" if len(names) > 5 else f"{shown} {'are' if len(names) > 1 else 'is'}"
