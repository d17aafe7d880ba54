"""What fine-tuning gained and what it cost: the model beside the one it started from, on its domain and on general conversations."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chattune.core.artifact import MANIFEST
from chattune.core.progress import talk
from chattune.evaluate import bootstrap
from chattune.evaluate.loss import SplitLoss, split_loss

if TYPE_CHECKING:
    from chattune.dialogs.artifact import Dialogs
    from chattune.dialogs.dialog import Dialog
    from chattune.evaluate.stage import EvaluateConfig
    from chattune.generate.reply import ChatModel
    from chattune.models.checkpoint import Checkpoint
    from chattune.tokens.token_set import TokenSet, TokenSplit

GENERAL, CHINESE = "chitchat", "chatterbot-chinese"
_HAN = re.compile(r"[\u3400-\u9fff]")


def forgetting(
    config: EvaluateConfig, seed: int, talker: ChatModel, dialogs: Dialogs, tokens: TokenSet, checkpoint: Checkpoint, loss: SplitLoss
) -> dict[str, Any]:
    """For a fine-tuned model: bits per byte ``before``, ``after`` and their paired ``difference`` with 95 % intervals, on the
    ``domain`` (the test split, whose `loss` is known) and on ``general`` conversations; empty for a model from fresh weights.

    ``notes`` say what could not be measured.
    """
    start = start_of(checkpoint)
    if start is None:
        return {}
    if not (start / MANIFEST).exists():
        return {"start": start.name, "notes": [f"The model it started from, {start.name}, is gone: nothing to compare with."]}
    general, sources, note = _general(config, dialogs, tokens)
    after = None if general is None else _loss(talker.model, general, tokens, talker.context)
    before = type(checkpoint).open(start).model()
    domain = _loss(before, tokens.split("test"), tokens, talker.context, config.overlap)
    found: dict[str, Any] = {"start": start.name, "domain": {"of": "the test split", **_compared(domain, loss, seed)}}
    if general is not None and after is not None:
        found["general"] = {"of": ", ".join(sources), **_compared(_loss(before, general, tokens, talker.context), after, seed)}
    return {**found, "notes": [note] if note else []}


def start_of(checkpoint: Checkpoint) -> Path | None:
    """Where the run lies, or lay, whose model this one was fine-tuned from; none for a model from fresh weights."""
    entry = checkpoint.manifest["inputs"].get("start")
    return None if entry is None else checkpoint.path.parent / entry["run"]


def sentences(found: Mapping[str, Any] | None) -> list[str]:
    """The figures for people; nothing for a model that was not fine-tuned."""
    if not found:
        return []
    told = []
    for name, better, worse in (("domain", "improved", "got worse"), ("general", "improved", "forgot")):
        if name in found:
            before, after, difference = (found[name][key] for key in ("before", "after", "difference"))
            word = better if difference["high"] < 0 else worse if difference["low"] > 0 else "kept its level"
            told.append(
                f"{name} conversations: {word}: {before['value']:.3f} → {after['value']:.3f} bits a byte, difference "
                f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}] against {found['start']}."
            )
    return told + list(found["notes"])


def _loss(model: Any, split: TokenSplit, tokens: TokenSet, context: int, overlap: int | None = None) -> SplitLoss:
    from chattune.evaluate.judge import usual_overlap

    back = usual_overlap(context) if overlap is None else min(overlap, context - 1)
    return split_loss(model, split, tokens.tokenizer.byte_lengths, context=context, overlap=back)


def _compared(before: SplitLoss, after: SplitLoss, seed: int) -> dict[str, Any]:
    sums = np.stack(((after.nll - before.nll) / math.log(2), after.bytes), axis=1)
    difference = dict(zip(("value", "low", "high"), bootstrap.interval(sums, bootstrap.ratio, seed), strict=True))
    return {
        **{
            name: dict(zip(("value", "low", "high"), loss.intervals(seed)["bits_per_byte"], strict=True))
            for name, loss in (("before", before), ("after", after))
        },
        "difference": difference,
        "dialogs": len(after.nll),
        "bytes": int(after.bytes.sum()),
    }


def _general(config: EvaluateConfig, dialogs: Dialogs, tokens: TokenSet) -> tuple[TokenSplit | None, tuple[str, ...], str]:
    """The general conversations as the model reads them, where they come from, and why there are none."""
    from chattune.tokens.token_set import TokenSplit

    if config.general == ():
        return None, (), ""
    learned = set(dialogs.summary["asked"])
    sources = config.general or ((CHINESE,) if _chinese(dialogs) else (GENERAL,))
    if learned & set(sources):
        same = ", ".join(sorted(learned & set(sources)))
        return None, (), f"Forgetting was not measured: {same} is what it learned from; name other conversations in evaluate.general."
    chosen = _evenly(_read(sources), config.general_dialogs)
    split = TokenSplit.of(tokens.template.render_many([dialog.messages for dialog in chosen]), tokens.tokenizer.control)
    if not np.any(np.asarray(split.weights) > 0):
        return None, (), f"Forgetting was not measured: {', '.join(sources)} holds nothing to predict."
    return split, sources, ""


def _read(sources: tuple[str, ...]) -> list[Dialog]:
    """Every conversation of the sources that has a reply, shaped as training data is."""
    from chattune.dialogs.dialog import Dialog
    from chattune.dialogs.gathering import Wanted, read_sources
    from chattune.dialogs.shape import Shaped, shaped

    found, left = [], 0
    for item in read_sources(Wanted(sources)):
        whole = shaped(item) if isinstance(item, Dialog) else item
        if isinstance(whole, Shaped):
            found.append(whole.dialog)
        else:
            left += 1
    talk().print(f"evaluate  general conversations from {', '.join(sources)}: {len(found):,}, {left:,} left out", markup=False)
    return found


def _evenly(found: list[Dialog], limit: int) -> list[Dialog]:
    if len(found) <= limit:
        return found
    return [found[place] for place in np.unique(np.linspace(0, len(found) - 1, limit).round().astype(np.int64))]


def _chinese(dialogs: Dialogs) -> bool:
    """Whether most letters of the first test conversations are Chinese."""
    text = "".join(message.content for dialog in islice(dialogs.read("test"), 50) for message in dialog.messages)
    letters = sum(character.isalpha() for character in text)
    return letters > 0 and len(_HAN.findall(text)) > letters / 2

