"""Exchanges: what was said and what a person answered; where prompts to answer and replies to imitate come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from chattune.core.seeds import generator
from chattune.dialogs.dialog import Dialog, Message


@dataclass(frozen=True, slots=True)
class Exchange:
    """One answered turn: ``messages[place]`` is what the assistant said, and the messages before it are its history."""

    conversation: str
    messages: tuple[Message, ...]
    place: int

    @property
    def history(self) -> tuple[Message, ...]:
        return self.messages[: self.place]

    @property
    def reply(self) -> str:
        return self.messages[self.place].content

    @property
    def question(self) -> str:
        """What the user said last: all user turns since the assistant last spoke, one a line."""
        said: list[str] = []
        for place in range(self.place - 1, -1, -1):
            message = self.messages[place]
            if message.role == "assistant":
                break
            if message.role == "user":
                said.append(message.content)
        return "\n".join(reversed(said))


def exchanges(dialogs: Iterable[Dialog]) -> Iterator[Exchange]:
    """Every turn of an assistant that says something and has a user turn somewhere before it."""
    for dialog in dialogs:
        asked = False
        for place, message in enumerate(dialog.messages):
            if message.role == "assistant" and asked and message.content.strip():
                yield Exchange(dialog.id, dialog.messages, place)
            asked = asked or message.role == "user"


def chosen(dialogs: Iterable[Dialog], count: int, seed: int, usable: Callable[[Exchange], bool]) -> tuple[list[Exchange], int]:
    """At most `count` exchanges, one a conversation, drawn by the seed, and how many conversations had none to offer.

    Which exchange of a conversation is drawn does not depend on `count`, and one that is not `usable` is never drawn.
    """
    drawn, without = [], 0
    for dialog in dialogs:
        random = generator(seed, "prompt", dialog.id)
        turn = random.random()  # where the conversation stands in the drawing
        candidates = list(exchanges([dialog]))
        order = random.permutation(len(candidates)).tolist()
        found = next((candidates[place] for place in order if usable(candidates[place])), None)
        if found is None:
            without += 1
        else:
            drawn.append((turn, dialog.id, found))
    return [exchange for _, _, exchange in sorted(drawn, key=lambda item: item[:2])[:count]], without
