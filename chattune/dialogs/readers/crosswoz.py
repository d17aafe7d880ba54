"""CrossWOZ: Chinese dialogues of a tourist and a system that knows sights, restaurants and hotels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_rows, first_rows, kind_of, share, text_of

_ROLES = {"usr": "user", "sys": "assistant"}


class CrossWOZ(Reader):
    """One object ``{id: {"goal", "messages": [{"role": "usr", "content", "dialog_act"}]}}``.

    Helps when: data is CrossWOZ.   Hurts when: the search behind replies is to be learned: its states are left out.
    Cost: one dialogue in memory.   Start with: the defaults.
    Source: Zhu et al. 2020, arXiv:2002.11893. ``metadata["knowledge"]`` holds the acts (act, domain, slot, value) of each message, by
    its number from 0; goal, task description and type are kept, too.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_rows(path, self.encoding, self.record_limit, "crosswoz", _build)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), _fits)


def _fits(row: Mapping[str, Any]) -> bool:
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        return False
    return all(isinstance(turn, Mapping) and turn.get("role") in ("usr", "sys") for turn in turns[:4])


def _build(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
    turns = row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable("no_messages", f"messages is {kind_of(turns)}, not a list of turns")
    messages = []
    for turn in turns:
        if (role := _ROLES.get(str(turn.get("role")))) is None:
            raise Unusable("unknown_role", f"role {turn.get('role')!r}"[:120])
        messages.append(Message(role, text_of(turn.get("content"), "content")))
    knowledge = {str(place): turn["dialog_act"] for place, turn in enumerate(turns) if turn.get("dialog_act")}
    metadata = {key: value for key, value in row.items() if key not in ("messages", "id", "group")}
    return messages, {**metadata, **({"knowledge": knowledge} if knowledge else {})}
