"""Schema-guided dialogues: turns of a user and a system that looks things up for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_rows, first_rows, kind_of, share, text_of

_ROLES = {"user": "user", "system": "assistant"}


class SchemaGuided(Reader):
    """Dialogues ``{"dialogue_id", "services", "turns": [{"speaker": "USER", "utterance", "frames"}]}``.

    Helps when: data is the Schema-Guided Dialogue set or MultiWOZ 2.2, which has its shape.   Hurts when: the system's search is to
    be learned: it stands in the frames, not in the turns.
    Cost: one dialogue in memory.   Start with: the defaults.
    Source: Rastogi et al. 2020, arXiv:1909.05855, and DSTC8. SYSTEM is the assistant; services are kept as metadata.
    """

    frames: bool = setting(False, "whether each turn's frames (intents, slots, states) are kept as metadata, by its number from 0")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_rows(path, self.encoding, self.record_limit, "sgd", self._build, id_key="dialogue_id")

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), _fits)

    def _build(self, row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        turns = row.get("turns")
        if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
            raise Unusable("no_messages", f"turns is {kind_of(turns)}, not a list of turns")
        messages = []
        for turn in turns:
            role = _ROLES.get(str(turn.get("speaker")).lower())
            if role is None:
                raise Unusable("unknown_role", f"speaker {turn.get('speaker')!r}"[:120])
            messages.append(Message(role, text_of(turn.get("utterance"), "utterance")))
        metadata = {key: value for key, value in row.items() if key not in ("dialogue_id", "turns", "group")}
        if self.frames:
            metadata["frames"] = {str(place): turn["frames"] for place, turn in enumerate(turns) if turn.get("frames")}
        return messages, metadata


def _fits(row: Mapping[str, Any]) -> bool:
    turns = row.get("turns")
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and {"speaker", "utterance"} <= turns[0].keys()
