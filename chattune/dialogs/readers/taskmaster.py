"""Taskmaster: spoken and written dialogues of somebody who orders or books something."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, first_rows, kind_of, many_of_rows, role_of, share, text_of


class Taskmaster(Reader):
    """Dialogues ``{"conversation_id", "utterances": [{"speaker", "text"}]}``; Taskmaster-4's judged calls of tools, too.

    Helps when: data is one of the four Taskmaster sets.   Hurts when: never.
    Cost: one dialogue in memory.   Start with: the defaults.
    Source: Byrne et al. 2019, arXiv:1909.05358, and the repository of Taskmaster 1 to 4. Annotations (calls of an interface behind
    a turn) are kept as metadata by the number of their message; labels of words are not. In rows
    ``{"context", "generation", "reward"}`` calls and their results become messages, and a reply without reward gets weight 0; rows of
    one conversation are a group.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return many_of_rows(path, self.encoding, self.record_limit, "taskmaster", _build, id_key="conversation_id")

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), lambda row: _is_dialogue(row) or {"context", "generation", "reward"} <= row.keys())


def _is_dialogue(row: Mapping[str, Any]) -> bool:
    turns = row.get("utterances")
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and {"speaker", "text"} <= turns[0].keys()


def _build(row: Mapping[str, Any]) -> Iterator[tuple[str, list[Message], dict[str, Any]]]:
    if "generation" in row:
        yield _judged(row)
        return
    turns = row.get("utterances")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable("no_messages", f"utterances is {kind_of(turns)}, not a list of turns")
    messages = [Message(role_of(turn.get("speaker")), text_of(turn.get("text"), "text")) for turn in turns]
    metadata = {key: value for key, value in row.items() if key not in ("conversation_id", "utterances", "group")}
    if notes := {str(place): turn["annotations"] for place, turn in enumerate(turns) if turn.get("annotations")}:
        metadata["annotations"] = notes
    yield "", messages, metadata


def _judged(row: Mapping[str, Any]) -> tuple[str, list[Message], dict[str, Any]]:
    context, reply, reward = _read(row.get("context"), "context"), _read(row.get("generation"), "generation"), row.get("reward")
    if not isinstance(context, list) or not all(isinstance(turn, Mapping) for turn in [*context, reply]):
        raise Unusable("wrong_type", "context and generation are not turns")
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        raise Unusable("no_label", f"reward is {kind_of(reward)}")
    messages = [Message(role_of(turn.get("role")), _content(turn)) for turn in context]
    messages.append(Message(role_of(reply.get("role")), _content(reply), None if reward > 0 else 0.0))
    return f"@{len(context)}", messages, {"reward": reward}


def _content(turn: Mapping[str, Any]) -> str:
    """What a turn says: its text, or its call or result as JSON."""
    data = next((turn[name] for name in ("api", "response") if name in turn), None)
    return text_of(turn.get("text"), "text") if data is None else json.dumps(data, ensure_ascii=False)


def _read(value: Any, what: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise Unusable("broken_json", f"{what} is not JSON") from None
