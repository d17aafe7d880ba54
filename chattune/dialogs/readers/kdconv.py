"""KdConv: Chinese conversations of two people about what they know, with the knowledge behind each turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_rows, first_rows, kind_of, share, text_of


class KdConv(Reader):
    """Conversations ``{"name", "messages": [{"message", "attrs": [{"name", "attrname", "attrvalue"}]}]}``.

    Helps when: data is KdConv (films, music, travel).   Hurts when: never.
    Cost: one conversation in memory.   Start with: the defaults.
    Source: Zhou et al. 2020, arXiv:2004.04100. The two take turns; who opens is the user. ``metadata["knowledge"]`` holds the triples
    (entity, attribute, value) behind each message, by its number from 0.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_rows(path, self.encoding, self.record_limit, "kdconv", _build)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), _fits)


def _fits(row: Mapping[str, Any]) -> bool:
    turns = row.get("messages")
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, Mapping) and "message" in turn for turn in turns[:4])


def _build(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
    turns = row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable("no_messages", f"messages is {kind_of(turns)}, not a list of turns")
    messages = [Message(("user", "assistant")[place % 2], text_of(turn.get("message"), "message")) for place, turn in enumerate(turns)]
    knowledge = {str(place): _triples(turn["attrs"]) for place, turn in enumerate(turns) if turn.get("attrs")}
    metadata = {key: value for key, value in row.items() if key not in ("messages", "id", "group")}
    return messages, {**metadata, **({"knowledge": knowledge} if knowledge else {})}


def _triples(attributes: Any) -> list[list[Any]]:
    if not isinstance(attributes, list) or not all(isinstance(item, Mapping) for item in attributes):
        raise Unusable("wrong_type", f"attrs is {kind_of(attributes)}, not a list of attributes")
    return [[item.get("name"), item.get("attrname"), item.get("attrvalue")] for item in attributes]
