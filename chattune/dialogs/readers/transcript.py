"""Plain transcripts: ``Name: text``, one line a turn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers._roles import ASSISTANTS, RolesByName
from chattune.dialogs.text import lines, reading

_STAMP = r"(?:[\[(]?\d[\d./:\- ,TZ]{3,28}(?:[AaPp]\.?[Mm]\.?)?[\])]?\s*(?:-\s)?)?"
_TURN = re.compile(rf"^\s*{_STAMP}<?(?P<name>[^\W\d_][^:：<>|{{}}\[\]\"]{{0,39}}?)>?\s*[:：](?!//)\s*(?P<text>.*)$")
_BREAK = re.compile(r"^\s*(?:-{3,}|={3,}|\*{3,}|#{3,})?\s*$")


class Transcript(RolesByName):
    """Lines ``Name: text``; a blank line or ``---`` ends a conversation, a line without a name goes on with the turn before it.

    Helps when: chats were copied out of a window or a document.   Hurts when: turns contain blank lines, or lines like ``Note: …``.
    Cost: one conversation in memory.   Start with: the defaults; name your speakers when the second to speak is not the assistant.
    Source: the usual shape of copied chats; a leading time such as ``[12:30]`` is left out, full-width colons count.
    """

    assistant: tuple[str, ...] = setting(ASSISTANTS, "names that speak for the assistant; without one, the second to speak does")

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

    def _roles(self, names: list[str]) -> dict[str, str]:
        """A role for each speaker: by name where the name says it; else the second to speak is the assistant, the others users."""
        speakers, known = list(dict.fromkeys(names)), self.names()
        roles = {name: role for name in speakers if (role := known.role(name))}
        unknown = [name for name in speakers if name not in roles]
        if "assistant" not in roles.values() and unknown:
            # Beside a known user the first stranger answers; among strangers the first one asks.
            place = 0 if "user" in roles.values() else 1
            if place < len(unknown):
                roles[unknown[place]] = "assistant"
        return {name: roles.get(name, "user") for name in speakers}
