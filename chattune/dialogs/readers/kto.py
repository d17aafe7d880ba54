"""Labelled replies: one reply each, with a mark that says whether it is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.readers._judged import LISTS, joined, prompt_of, rest, said
from chattune.dialogs.rows import LABELS, Unusable, dialogs_of_rows, first_rows, is_pair, label_of, share

_REPLIES = ("completion", "response", "output", "answer")


class KTO(Reader):
    """Rows ``{"prompt", "completion", "label"}``, whose label is true where the reply is wanted and false where it is not.

    Helps when: users marked replies with a thumb up or down.   Hurts when: the label says something else than good and bad.
    Cost: one row in memory.   Start with: the defaults.
    Source: the rows of KTO (Ethayarajh et al. 2024, arXiv:2402.01306) as in TRL and LLaMA-Factory (`kto_tag`, also with ``messages`` or
    ``conversations``). The last reply of a row with a false label gets weight 0: it is context that is never learned. The label is
    kept in ``metadata["label"]``.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_rows(path, self.encoding, self.record_limit, "kto", _build)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), lambda row: label_of(row) is not None and not is_pair(row) and _holds_reply(row))


def _holds_reply(row: Mapping[str, Any]) -> bool:
    return bool(row.keys() & {*_REPLIES, *LISTS})


def _build(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
    label = _label(row)
    messages = prompt_of(row)
    if not any(row.get(name) for name in LISTS):
        name = next((name for name in _REPLIES if name in row), None)
        if name is None:
            raise Unusable("no_messages", f"no reply among {', '.join(map(str, row))}"[:160])
        messages = joined(messages, said(row[name], name))
    last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=None)
    if last is None:
        raise Unusable("no_reply", f"{len(messages)} messages, none by the assistant")
    if not label:
        messages = [replace(message, weight=0.0) if place == last else message for place, message in enumerate(messages)]
    return messages, {**rest(row, (*_REPLIES, *LABELS)), "label": label}


def _label(row: Mapping[str, Any]) -> bool:
    value = next((row[name] for name in LABELS if name in row), None)
    label = label_of(row)
    if label is None and str(value).strip() in ("0", "1", "0.0", "1.0"):
        label = float(str(value)) == 1
    if label is None:
        raise Unusable("no_label", "the label is neither true nor false")
    return label
