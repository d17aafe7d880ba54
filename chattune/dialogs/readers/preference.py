"""Preference pairs: one question, a reply that was chosen and one that was rejected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.readers._judged import joined, prompt_of, rest, said
from chattune.dialogs.rows import CHOSEN, REJECTED, Unusable, dialogs_of_rows, first_rows, is_pair, share


class Preference(Reader):
    """Rows ``{"prompt", "chosen", "rejected"}`` as for DPO, and Anthropic's texts of ``Human:`` and ``Assistant:``.

    Helps when: replies were compared, and the better ones are to be learned.   Hurts when: even the chosen reply is not one to learn
    from, as in sets that were made to show harm.
    Cost: one row in memory.   Start with: the defaults.
    Source: the shapes of hh-rlhf, TRL, OpenAI (`preferred_output`), LLaMA-Factory, PKU-SafeRLHF (`better_response_id`) and Stack
    Exchange (`response_j`, `response_k`). The dialog is the chosen one. ``metadata["rejected"]`` is the text of the rejected reply
    where only the last reply differs, else the list of the messages of the rejected conversation.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_rows(path, self.encoding, self.record_limit, "preference", _build)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), is_pair)


def _build(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
    chosen, rejected, used = _choices(row)
    prompt = prompt_of(row)
    good, bad = joined(prompt, said(chosen, "chosen")), joined(prompt, said(rejected, "rejected"))
    if not any(message.role == "user" for message in good):
        raise Unusable("no_prompt", f"nothing is asked among {', '.join(map(str, row))}"[:160])
    only_last = good[:-1] == bad[:-1] and good[-1].role == bad[-1].role == "assistant"
    lost = bad[-1].content if only_last else [message.as_dict() for message in bad]
    return good, {**rest(row, used), "rejected": lost}


def _choices(row: Mapping[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
    """The chosen reply, the rejected one, and the fields that say so."""
    if {"response_0", "response_1", "better_response_id"} <= row.keys():
        better = str(row["better_response_id"])
        if better not in ("0", "1"):
            raise Unusable("no_choice", "better_response_id is neither 0 nor 1")
        names = ("response_0", "response_1") if better == "0" else ("response_1", "response_0")
        return row[names[0]], row[names[1]], (*names, "better_response_id")
    output = row.get("output")
    if "instruction" in row and isinstance(output, list) and len(output) == 2:
        return output[0], output[1], ("output",)
    good = next((name for name in CHOSEN if name in row), None)
    bad = next((name for name in REJECTED if name in row), None)
    if good is None or bad is None:
        raise Unusable("no_choice", f"no chosen and rejected reply among {', '.join(map(str, row))}"[:160])
    return row[good], row[bad], (good, bad)
