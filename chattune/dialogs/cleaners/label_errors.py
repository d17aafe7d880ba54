"""Replies that do not belong to what was asked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, Cleaning, dropped
from chattune.dialogs.dialog import Dialog, Drop


class LabelErrors(Cleaner):
    """Find the replies that fit their question worst, by models that learnt from the other dialogs which belong together.

    Every reply gets a loss: how hard it is to pick for its question from among 255 others, in nats; the share of the dialogs with the
    highest is left out, or their replies are kept as context and not learned. Being unlike the rest is no proof of being wrong: look
    at the counts, and compare a training with and without.
    Helps when: tickets are answered in the wrong thread, exports are shifted by a row, answers were generated carelessly.
    Hurts when: replies have little to do with questions in the first place (small talk): then the ranking is near chance.
    Cost: 1 ms a reply.   Start with: 0.05, or the share of errors that a look at a sample shows.
    Source: ranking by loss on held-out folds, as in confident learning, Northcutt et al. 2021, arXiv:1911.00068; the model is the dual
    encoder of `features.matching`. With a fifth of the replies swapped the swapped ones are ranked first with an AUROC of 0.94 on
    CrossWOZ and 0.90 on KdConv, 0.6 on chitchat (RESULTS.md).
    """

    looks_at_all: ClassVar[bool] = True

    share: float = setting(0.05, "share of the replies that are taken for errors", low=0.0, high=0.5, search=(0.0, 0.2))
    action: Literal["drop", "unlearn"] = setting(
        "drop", "drop: leave the dialog out; unlearn: keep the reply as context, with a loss weight of 0"
    )
    seed: int = setting(0, "of the folds and the models", low=0)

    def begin(self, dialogs: Collection[Dialog]) -> Cleaning:
        import numpy as np

        from chattune.features.matching import mismatch

        places, asked, replies = [], [], []
        for dialog in dialogs:
            for place, question, reply in exchanges(dialog):
                places.append((dialog.id, place))
                asked.append(question)
                replies.append(reply)
        loss = mismatch(asked, replies, seed=self.seed)
        count = int(len(loss) * self.share)
        wrong: dict[str, dict[int, float]] = {}
        for number in np.argsort(-loss, kind="stable")[:count].tolist():
            dialog_id, place = places[number]
            wrong.setdefault(dialog_id, {})[place] = float(loss[number])
        return _Found(self.action, wrong)


def exchanges(dialog: Dialog) -> list[tuple[int, str, str]]:
    """Each reply: its place among the messages, the question before it, and what it says."""
    pairs = enumerate(zip(dialog.messages, dialog.messages[1:], strict=False), 1)
    return [(n, q.content, r.content) for n, (q, r) in pairs if q.role in ("user", "tool") and r.role == "assistant"]


@dataclass(frozen=True)
class _Found:
    """`wrong`: dialog → place of a message → its loss."""

    action: str
    wrong: dict[str, dict[int, float]]

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        own = self.wrong.get(dialog.id)
        if own is None:
            return dialog
        if self.action == "drop":
            return dropped(dialog, "label_error", f"{len(own)} of its replies fit badly, the worst with {max(own.values()):.2f} nats")
        messages = [replace(message, weight=0.0) if place in own else message for place, message in enumerate(dialog.messages)]
        return replace(dialog, messages=tuple(messages))
