"""Plain transcripts: ``Name: text``, one line a turn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import model_validator

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.text import lines, reading

_STAMP = r"(?:[\[(]?\d[\d./:\- ,TZ]{3,28}(?:[AaPp]\.?[Mm]\.?)?[\])]?\s*(?:-\s)?)?"
_TURN = re.compile(rf"^\s*{_STAMP}<?(?P<name>[^\W\d_][^:：<>|{{}}\[\]\"]{{0,39}}?)>?\s*[:：](?!//)\s*(?P<text>.*)$")
_BREAK = re.compile(r"^\s*(?:-{3,}|={3,}|\*{3,}|#{3,})?\s*$")
ASSISTANTS = (
    "assistant", "agent", "bot", "chatbot", "support", "advisor", "operator", "ai", "gpt", "chatgpt", "model", "helpdesk", "consultant",
    "客服", "助手", "助理", "机器人", "坐席", "顾问",
)  # fmt: skip
USERS = ("user", "human", "customer", "client", "caller", "visitor", "me", "用户", "客户", "顾客", "访客", "我")
SYSTEMS = ("system", "系统")
_LISTS = {"user": USERS, "assistant": ASSISTANTS, "system": SYSTEMS}


class Transcript(Reader):
    """Lines ``Name: text``; a blank line or ``---`` ends a conversation, a line without a name goes on with the turn before it.

    Helps when: chats were copied out of a window or a document.   Hurts when: turns contain blank lines, or lines like ``Note: …``.
    Cost: one conversation in memory.   Start with: the defaults; name your speakers when the second to speak is not the assistant.
    Source: the usual shape of copied chats; a leading time such as ``[12:30]`` is left out, full-width colons count.
    """

    assistant: tuple[str, ...] = setting(ASSISTANTS, "names that speak for the assistant; without one, the second to speak does")
    user: tuple[str, ...] = setting(USERS, "names that speak for the user")
    system: tuple[str, ...] = setting(SYSTEMS, "names whose lines are instructions")

    @model_validator(mode="after")
    def _one_role_each(self) -> Self:
        # Only names that were set are compared: setting one that another list has by default is how it gets another role.
        own = {role: {name.lower() for name in getattr(self, role)} for role in _LISTS if self._is_set(role)}
        for first, second in itertools.combinations(own, 2):
            if both := own[first] & own[second]:
                raise ValueError(f"'{min(both)}' is named as {first} and as {second}: should have one role")
        return self

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        turns: list[tuple[str, str]] = []
        began = count = length = 0
        with reading(path, self.encoding) as file:
            for item in lines(file, self.record_limit, str(path)):
                if isinstance(item, Drop):
                    yield item
                    continue
                number, line = item
                if _BREAK.match(line):
                    if turns:
                        count += 1
                        yield self._dialog(path, count, began, turns)
                    turns, length = [], 0
                    continue
                length += len(line)
                match = _TURN.match(line)
                if length > self.record_limit:
                    yield Drop("line_too_long", str(path), number, "the conversation goes on beyond the limit; this line is left out")
                elif match:
                    began = began if turns else number
                    turns.append((match["name"].strip(), match["text"]))
                elif turns:
                    turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{line}")
                else:
                    yield Drop("no_speaker", str(path), number, "a conversation begins with a line that names no speaker")
        if turns:
            yield self._dialog(path, count + 1, began, turns)

    def score(self, path: Path, head: str) -> float:
        if head.lstrip().startswith(("{", "[{", "<!", "<?")) or re.search(r"^\s*- - ", head, re.MULTILINE):
            return 0.0
        written = [line for line in head.splitlines()[:400] if not _BREAK.match(line)]
        names = [match["name"].strip().lower() for line in written if (match := _TURN.match(line))]
        if len(set(names)) < 2 or len(names) < 2:
            return 0.0
        # Speakers come back, or are names we know; the keys of a settings file do not. A few lines cannot tell.
        known = {*map(str.lower, (*self.assistant, *self.user, *self.system))}
        recurring = sum(names.count(name) > 1 or name in known or len(names) < 5 for name in set(names)) / len(set(names))
        return round(0.9 * len(names) / len(written) * (0.3 + 0.7 * recurring), 3)

    def _dialog(self, path: Path, number: int, line: int, turns: list[tuple[str, str]]) -> Dialog:
        roles = self._roles([name for name, _ in turns])
        messages = tuple(Message(roles[name], text) for name, text in turns)
        return Dialog(f"{path.name}#{number}", messages, "transcript", str(path), line)

    def _is_set(self, role: str) -> bool:
        return bool(getattr(self, role) != _LISTS[role])

    def _roles(self, names: list[str]) -> dict[str, str]:
        """A role for each speaker: by name where the name says it; else the second to speak is the assistant, the others users."""
        ranked = sorted(_LISTS, key=self._is_set)  # what was set stands over a default
        named = {known.lower(): role for role in ranked for known in getattr(self, role)}
        speakers = list(dict.fromkeys(names))
        roles = {name: named[name.lower()] for name in speakers if name.lower() in named}
        unknown = [name for name in speakers if name not in roles]
        if "assistant" not in roles.values() and unknown:
            # Beside a known user the first stranger answers; among strangers the first one asks.
            place = 0 if "user" in roles.values() else 1
            if place < len(unknown):
                roles[unknown[place]] = "assistant"
        return {name: roles.get(name, "user") for name in speakers}
