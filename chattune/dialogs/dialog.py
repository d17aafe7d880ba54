"""`Dialog`: one conversation, and `Drop`: why one was left out. The only form in which conversations travel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` scales its loss; ``None`` means the rule of the `prepare` stage decides."""

    role: str
    content: str
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, not {self.role!r}")

    def as_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        return data if self.weight is None else {**data, "weight": self.weight}


@dataclass(frozen=True, slots=True)
class Dialog:
    """A conversation in order. `source` names where it came from, `file` and `line` (from 1) the exact place.

    `group` says what must not be torn apart by a split (a customer, a thread); by default the dialog itself.
    """

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    file: str = ""
    line: int = 0
    group: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "id": self.id, "messages": [m.as_dict() for m in self.messages],
            "source": self.source, "file": self.file, "line": self.line,
        }  # fmt: skip
        if self.group is not None:
            data["group"] = self.group
        if self.metadata:
            data["metadata"] = dict(self.metadata)
        return data

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Dialog:
        messages = tuple(Message(m["role"], m["content"], m.get("weight")) for m in data["messages"])
        return cls(
            data["id"], messages, data.get("source", ""), data.get("file", ""), data.get("line", 0), data.get("group"),
            data.get("metadata", {}),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drop:
    """Something read that is not kept: the reason (a word that is counted), the place, and one line of detail."""

    reason: str
    file: str = ""
    line: int = 0
    detail: str = ""
