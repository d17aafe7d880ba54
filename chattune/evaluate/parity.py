"""Whether a model treats sides alike: what it thinks of a test conversation, and of the same one about the other side.

Each test conversation that mentions a side (he, the south, one of two products) is read twice, as it is and with the sides swapped in
every turn, replies included. A model that is neutral between the sides finds the replies of both equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chattune.core.errors import UsageError
from chattune.core.seeds import generator
from chattune.dialogs.augmentations._counterparts import Counterparts, Shifts
from chattune.evaluate import bootstrap
from chattune.evaluate.loss import SplitLoss, split_loss

if TYPE_CHECKING:
    from chattune.dialogs.dialog import Dialog
    from chattune.evaluate.stage import Parity
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.tokenizer import Tokenizer

FEW = 10  # conversations; with fewer an interval over them says little
Row = dict[str, Any]


class Pairs:
    """The conversations of a split that a swap changes, each beside its counterpart, for one group of terms after another."""

    def __init__(self, dialogs: Collection[Dialog], config: Parity, seed: int) -> None:
        counterparts = Counterparts(config.axes())
        self.sides = {name: axis.sides for name, axis in counterparts.axes.items()}
        self.total = len(dialogs)
        places: dict[str, list[int]] = {name: [] for name in self.sides}
        for place, dialog in enumerate(dialogs):
            for name in counterparts.counts(dialog):
                places[name].append(place)
        chosen = {name: _evenly(own, config.dialogs) for name, own in places.items()}
        self.pairs: dict[str, list[tuple[Dialog, Dialog, str | None]]] = {name: [] for name in self.sides}
        for place, dialog in enumerate(dialogs):
            for name in (name for name, own in chosen.items() if place in own):
                after = counterparts.dialog(dialog, _shift(counterparts, name, seed, dialog))
                side = _side(self.sides[name], counterparts.counts(dialog)[name])
                self.pairs[name].append((dialog, after, side))

    def measured(self, model: LanguageModel, tokenizer: Tokenizer, *, context: int, overlap: int) -> list[Row]:
        """One row a group and conversation that has replies to score.

        ``bits``: how many more the replies cost when swapped; ``bytes``: of the replies, the mean of both readings; ``side``: which
        side the conversation mentions more often, none where it is even.
        """
        rows: list[Row] = []
        for name, found in self.pairs.items():
            if not found:
                continue
            before, after = (
                _loss(side, model, tokenizer, context, overlap)
                for side in ([one.messages for one, _, _ in found], [other.messages for _, other, _ in found])
            )
            rows += [
                {"group": name, "conversation": dialog.id, "bits": bits, "bytes": size, "side": side}
                for (dialog, _, side), bits, size in zip(
                    found, ((after.nll - before.nll) / math.log(2)).tolist(), ((after.bytes + before.bytes) / 2).tolist(), strict=True
                )
                if size > 0
            ]
        return rows

    def told(self, rows: Sequence[Row], seed: int, before: Sequence[Row] | None = None) -> dict[str, Any]:
        """For each group its ``gap`` and, where it has two sides, its ``lean``, in bits a byte of the replies with 95 % intervals over
        conversations; none where no conversation tells. `before`: the rows of the model it started from, for the paired ``change``.

        ``gap``: the absolute difference between both readings; 0 says that they are equally likely. ``lean``: how many bits more the
        second side costs than the first, over the conversations that mention one side more often; above 0 the first is preferred.
        Terms differ in spelling and frequency too, so that no model has a gap of exactly 0: compare models, not a model with 0.
        """
        groups = []
        for name, sides in self.sides.items():
            own = [row for row in rows if row["group"] == name]
            leaning = [row for row in own if row["side"] is not None] if len(sides) == 2 else []
            signed = [row["bits"] if row["side"] == sides[0] else -row["bits"] for row in leaning]
            groups.append({
                "group": name, "sides": list(sides), "conversations": len(own), "leaning": len(leaning),
                "gap": _interval([abs(row["bits"]) for row in own], own, seed),
                "lean": _interval(signed, leaning, seed),
                "change": None if before is None else change([row for row in before if row["group"] == name], own, seed),
            })  # fmt: skip
        return {"groups": groups, "test": self.total}


def change(before: Sequence[Row], after: Sequence[Row], seed: int) -> dict[str, float] | None:
    """The gap of one model less that of another on the same conversations, in bits a byte, paired; none without conversations.

    Raises `UsageError` where the rows are of different conversations, or of other replies in them.
    """
    if [(row["group"], row["conversation"]) for row in before] != [(row["group"], row["conversation"]) for row in after]:
        raise UsageError("the gaps were measured on different conversations.", rule="one test split, and the same settings of parity")
    if any(one["bytes"] != other["bytes"] for one, other in zip(before, after, strict=True)):
        raise UsageError("the gaps were measured on different replies.", rule="tokenizers that know the same text")
    return _interval([abs(b["bits"]) - abs(a["bits"]) for a, b in zip(before, after, strict=True)], after, seed)


def sentences(found: Mapping[str, Any] | None) -> list[str]:
    """The figures for people, a sentence each."""
    if not found:
        return []
    told = []
    for group in found["groups"]:
        name, count, gap, lean = group["group"], group["conversations"], group["gap"], group["lean"]
        if gap is None:
            told.append(f"parity of {name}: cannot tell, none of {found['test']:,} test conversations changes when sides are swapped.")
            continue
        said = f"parity of {name}: a gap of {_shown(gap)} bits a byte over {count:,} test conversations that a swap changes"
        if count < FEW:
            said += ", which are few"
        if lean is not None:
            first, second = group["sides"]
            side = first if lean["low"] > 0 else second if lean["high"] < 0 else None
            way = f"leans to {side}" if side else f"leans to neither {first} nor {second} beyond doubt"
            said += f"; it {way} ({_shown(lean, '+')} for {first}, {group['leaning']:,} conversations)"
        if group["change"] is not None:
            way = "smaller" if group["change"]["high"] < 0 else "larger" if group["change"]["low"] > 0 else "the same within doubt"
            said += f"; after fine-tuning the gap is {way} ({_shown(group['change'], '+')})"
        told.append(f"{said}.")
    return told


def _shift(counterparts: Counterparts, name: str, seed: int, dialog: Dialog) -> Shifts:
    return {name: counterparts.drawn(generator(seed, "parity", name, dialog.id))[name]}


def _evenly(places: Sequence[int], limit: int) -> frozenset[int]:
    if len(places) <= limit:
        return frozenset(places)
    return frozenset(places[n] for n in np.linspace(0, len(places) - 1, limit).round().astype(int).tolist())


def _side(sides: Sequence[str], counts: Sequence[int]) -> str | None:
    most = max(counts)
    return sides[counts.index(most)] if counts.count(most) == 1 else None


def _loss(dialogs: Sequence[Any], model: LanguageModel, tokenizer: Tokenizer, context: int, overlap: int) -> SplitLoss:
    """The loss of the replies alone, whichever turns the model was trained on."""
    from chattune.tokens.token_set import TokenSplit

    split = TokenSplit.of(tokenizer.template("assistant").render_many(dialogs), tokenizer.control)
    return split_loss(model, split, tokenizer.byte_lengths, context=context, overlap=overlap)


def _interval(bits: Sequence[float], rows: Sequence[Row], seed: int) -> dict[str, float] | None:
    if not rows:
        return None
    sums = np.array([(each, row["bytes"]) for each, row in zip(bits, rows, strict=True)])
    return dict(zip(("value", "low", "high"), bootstrap.interval(sums, bootstrap.ratio, seed), strict=True))


def _shown(score: Mapping[str, float], sign: str = "") -> str:
    return f"{score['value']:{sign}.3f} [{score['low']:{sign}.3f}, {score['high']:{sign}.3f}]"
