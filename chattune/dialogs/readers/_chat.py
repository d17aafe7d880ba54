"""What the readers of logs, chat exports and threads share: names and their roles, sessions, and the account of what was left
out.

A reader of a chat gives events (`Said`, `Aside`, `Room`, `Drop`) in the order of the log; this file makes dialogs of them.
Lines of a log that are no message (joins, pictures left out, notices) are not records of their own: each is counted by its
reason in ``metadata["left_out"]`` of the conversation that it stands in, so that the entries of a file are messages + left out
+ dropped.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chattune.core.part import setting
from chattune.core.progress import talk
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers._roles import RolesByName
from chattune.dialogs.sessions import WINDOW, Conversation, Event, Names, Note, Plan, Room, Said, Survey, conversations

_SPOKEN = 4  # chats of one file of which it is said how they are read


class ChatLog(RolesByName):
    """A log in which several people speak, without a mark where one conversation ends and the next begins."""

    gap: float | None = setting(
        None, "minutes of silence that end a conversation; none: where short silences and long ones part in the file", above=0
    )
    days: bool = setting(False, "whether a new day ends a conversation")
    disentangle: bool = setting(False, "whether conversations that run through one another are separated by who answers whom")
    window: int = setting(WINDOW, "messages back that an answer may reach, where conversations are separated", low=1, high=10_000)

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        notes: list[str] = []
        plans = [self._plan(events) for _, events in _rooms(self.events(path), notes)]
        count = 0
        for place, (room, events) in enumerate(_rooms(self.events(path), [])):
            plan = plans[place] if place < len(plans) else self._plan(())
            before = count
            for item in self._cut(events, plan):
                if isinstance(item, Drop):
                    yield item if item.file else Drop(item.reason, str(path), item.line, item.detail)
                    continue
                count += 1
                item.room = room
                yield dialog_of(item, plan, path, count, self.name)
            if count > before and place < _SPOKEN:
                chat = f" ({room[:40]})" if room else ""
                told = [plan.told(), *self._divided(plan, count - before), *notes]
                talk().print(f"read     {path.name}{chat}: {'; '.join(told)}", markup=False)

    def events(self, path: Path) -> Iterator[Event]:
        """What the log at `path` says, in order; read twice."""
        raise NotImplementedError

    def by_threads(self) -> bool:
        """Whether what a message answers is the name of its thread."""
        return False

    def _separates(self, plan: Plan) -> bool:
        return self.disentangle and plan.speakers > 2  # what two say to each other is one conversation at a time

    def _divided(self, plan: Plan, found: int) -> Iterator[str]:
        """How `found` conversations were told apart, beside silences, in words."""
        if self._separates(plan):
            yield (
                f"{found} conversations that ran through one another, separated by who answers whom within {self.window} messages "
                f"(collect.format.name={self.name} collect.format.disentangle=false leaves them together)"
            )
        elif self.by_threads():
            yield "each thread is a conversation"

    def _plan(self, events: Iterable[Event]) -> Plan:
        survey = Survey(self.names())
        for event in events:
            survey.see(event)
        return survey.settled(None if self.gap is None else self.gap * 60)

    def _cut(self, events: Iterable[Any], plan: Plan) -> Iterator[Conversation | Drop]:
        linker = None
        if self._separates(plan):
            from chattune.dialogs.disentangle import Linker  # needs NumPy, which asking a reader for its score does not

            linker = Linker(self.window)
        return conversations(events, plan, days=self.days, threads=self.by_threads(), linker=linker, limit=self.record_limit)


def _rooms(events: Iterable[Event], notes: list[str]) -> Iterator[tuple[str, Iterator[Said | Any]]]:
    """The events of each chat in a file, with its name; `notes` are added to. What stands before the first is a chat without a
    name."""
    def placed() -> Iterator[tuple[tuple[int, str], Event]]:
        number, name = 0, ""
        for event in events:
            if isinstance(event, Room):
                number, name = number + 1, event.name
            elif isinstance(event, Note):
                notes.append(event.text)
            else:
                yield (number, name), event

    for (_, name), found in itertools.groupby(placed(), key=operator.itemgetter(0)):
        yield name, map(operator.itemgetter(1), found)


def dialog_of(conversation: Conversation, plan: Plan, path: Path, number: int, source: str, **metadata: Any) -> Dialog:
    """A conversation as a dialog; ``metadata`` tells who speaks in which role, why, when it began and what was left out."""
    said = conversation.said
    roles, how = plan.roles(said)
    told: dict[str, Any] = {"speakers": roles, "roles_by": how, **metadata}
    if (began := stamp(said[0].time)) is not None:
        told["began"] = began
    if conversation.room:
        told["chat"] = conversation.room
    if said[0].within:
        told["file"] = said[0].within
    if any(conversation.left_out.values()):
        told["left_out"] = {reason: count for reason, count in sorted(conversation.left_out.items()) if count}
    messages = tuple(Message(roles[one.speaker], one.text) for one in said)
    place = f"{path.parent.name}/{path.name}/{conversation.room}".rstrip("/")
    group = f"{place}/{conversation.thread}" if conversation.thread else None
    return Dialog(f"{path.name}#{number}", messages, source, str(path), said[0].line, group, told)


def threads_of(posts: Sequence[tuple[Said, bool]], left_out: Counter[str], names: Names) -> Iterator[tuple[Conversation, Plan]]:
    """The conversations of a page of posts: all of them, or the first one with each that answers it by itself (which is marked).

    What was left out of the page is counted in the first of them; several are a group.
    """
    survey = Survey(names)
    for said, _ in posts:
        survey.note(said.speaker, None if said is posts[0][0] else posts[0][0].speaker, said.role)
    plan = survey.settled()
    answers = [said for said, answer in posts if answer]
    if not answers:
        yield Conversation([said for said, _ in posts], Counter(left_out)), plan
        return
    question = [said for said, answer in posts if not answer]
    for place, said in enumerate(answers):
        own = replace(plan, certain={**plan.certain, said.speaker: "assistant", **{one.speaker: "user" for one in question}})
        if said.speaker in {one.speaker for one in question}:  # who asked answers it, too
            said = replace(said, speaker=f"{said.speaker} (answer)")
            own = replace(own, certain={**own.certain, said.speaker: "assistant"})
        thread = "answers" if len(answers) > 1 else ""
        yield Conversation([*question, said], Counter(left_out) if place == 0 else Counter(), thread=thread), own


def stamp(time: float | None) -> str | None:
    """A time on the log's own clock, such as ``2024-03-05T10:11:12``; none where the log has no date."""
    if time is None or not 86400.0 * 366 < time < 253402300800:
        return None
    return datetime.fromtimestamp(time, UTC).replace(tzinfo=None, microsecond=0).isoformat()


def clock(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: float = 0.0) -> float | None:
    """Seconds since 1970 on a clock without a time zone, or none when there is no such moment."""
    try:
        return datetime(year, month, day, hour, minute, int(second), tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def moment(value: Any) -> float | None:
    """Seconds since 1970 of a time as exports write them: ISO 8601 with a zone and fractions or not, or seconds; else none."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = float(value)
            return seconds if 0 < seconds < 253402300800 else None
        if not isinstance(value, str):
            return None
        found = datetime.fromisoformat(value.strip())
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
