"""Judging a checkpoint: its loss and its replies on the test split, beside baselines and beside people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from chattune.core.artifact import MANIFEST
from chattune.core.errors import ArtifactError, DataError
from chattune.core.progress import Progress, progress
from chattune.core.seeds import derived
from chattune.evaluate import bootstrap
from chattune.evaluate.exchanges import Exchange, chosen, exchanges
from chattune.evaluate.forgetting import forgetting, start_of
from chattune.evaluate.history import history_curve
from chattune.evaluate.loss import SplitLoss, split_loss
from chattune.evaluate.metrics import Item, Metric
from chattune.evaluate.parity import Pairs
from chattune.evaluate.verdict import verdict
from chattune.generate.reply import ChatModel, Reply, Sampling

if TYPE_CHECKING:
    from chattune.dialogs.artifact import Dialogs
    from chattune.evaluate.baselines import Baseline
    from chattune.evaluate.stage import EvaluateConfig
    from chattune.models.checkpoint import Checkpoint
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.token_set import TokenSet, TokenSplit

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Judged:
    """The figures, in the form of ``summary.json``; one row for each prompt, in that of ``replies.jsonl``; the loss of each dialog; one
    row for each conversation and its counterpart, in the form of ``parity.jsonl``, where that was asked for.
    """

    summary: dict[str, Any]
    replies: list[dict[str, Any]]
    loss: SplitLoss
    parity: list[dict[str, Any]]


def judge(config: EvaluateConfig, seed: int, dialogs: Dialogs, tokens: TokenSet, checkpoint: Checkpoint) -> Judged:
    """Everything that is measured. Raises `ArtifactError` where dialogs, tokens and model do not belong together."""
    _refuse_strangers(dialogs, tokens, checkpoint)
    split = tokens.split("test")
    if not np.any(np.asarray(split.weights) > 0):
        raise DataError(
            "has no target tokens.", path=str(tokens.path / "test"), rule="at least one turn to predict",
            hint="Bring more conversations, or set prepare.targets=all.",
        )
    with progress("evaluate", 4 + len(config.baselines), unit="part") as bar:
        talker = ChatModel(checkpoint.model(), tokens.template)
        context = talker.context
        overlap = usual_overlap(context) if config.overlap is None else min(config.overlap, context - 1)
        loss = split_loss(talker.model, split, tokens.tokenizer.byte_lengths, context=context, overlap=overlap)
        bar.update(1, bits_per_byte=f"{loss.bits_per_byte:.3f}")
        prompts, without = chosen(dialogs.read("test"), config.replies, seed, _Usable(talker, config.sampling))
        replies = _replies(talker, prompts, config.sampling, seed)
        talker.close()  # what it remembers of them is not needed any more
        bar.update(2, replies=len(replies))
        others = _baselines(config.baselines, seed, dialogs, tokens, split, prompts, bar)
        history = None
        if config.history_dialogs:
            history = history_curve(
                talker.model, split, tokens.tokenizer.byte_lengths, context=context, dialogs=config.history_dialogs, seed=seed
            )
    scores, notes, single = _scored(config.metrics, prompts, [reply.text for reply in replies], seed)
    metrics = {**_loss_scores(loss, seed), **scores}
    baselines = {
        name: {**(_loss_scores(other.loss, seed) if other.loss else {}), **_scored(config.metrics, prompts, other.replies, seed)[0]}
        for name, other in others.items()
    }
    people = _scored([m for m in config.metrics if not m.needs_reference], prompts, [p.reply for p in prompts], seed)[0]
    started = forgetting(config, seed, talker, dialogs, tokens, checkpoint, loss)
    sides, rows = None, []
    if config.parity:
        pairs = Pairs(dialogs.read("test"), config.parity, seed)
        measured = partial(pairs.measured, tokenizer=tokens.tokenizer, context=context, overlap=overlap)
        rows, before = measured(talker.model), _model_it_started_from(checkpoint)
        sides = pairs.told(rows, seed, None if before is None else measured(before))
    ngram = others["ngram"].loss if "ngram" in others else None
    difference = _difference(loss, ngram, seed) if ngram is not None else None
    known = dialogs.summary
    summary = {
        "metrics": metrics,
        "baselines": baselines,
        "people": people,
        "difference": {"ngram": {"bits_per_byte": difference}} if difference else {},
        "verdict": verdict(metrics, baselines, people, difference),
        **({"started": started} if started else {}),
        **({"history": history} if history else {}),
        **({"parity": sides} if sides else {}),
        "notes": notes,
        "better": {metric.name: metric.better for metric in config.metrics} | {"bits_per_byte": "lower", "perplexity": "lower"},
        "prompts": {
            "answered": len(prompts), "asked_for": config.replies, "conversations_without_a_usable_turn": without,
            "forgotten_messages": sum(reply.forgotten for reply in replies),
            "cut_off": sum(reply.finish_reason == "length" for reply in replies),
        },
        "test": {
            "conversations": len(split), "target_tokens": int(loss.tokens.sum()), "bytes": int(loss.bytes.sum()),
            "context": context, "overlap": overlap, "untouched": untouched(tokens, checkpoint),
        },
        "split": known["split"],
        "counts": known["counts"],
    }  # fmt: skip
    return Judged(summary, _rows(prompts, replies, others, single), loss, rows)


def usual_overlap(context: int) -> int:
    """Tokens that a window of a long conversation sees of the one before, where nothing else is set."""
    return context // 2


def untouched(tokens: TokenSet, checkpoint: Checkpoint) -> bool:
    """True when it is certain that the model never saw the test split: it learned from this token set's training split alone."""
    learned_from = checkpoint.manifest["inputs"]
    return "start" not in learned_from and learned_from.get("tokens", {}).get("digest") == tokens.digest


def _refuse_strangers(dialogs: Dialogs, tokens: TokenSet, checkpoint: Checkpoint) -> None:
    if tokens.manifest["inputs"]["dialogs"]["digest"] != dialogs.digest:
        raise ArtifactError(
            "was prepared from other dialogs.", path=str(tokens.path), value=tokens.manifest["inputs"]["dialogs"]["run"],
            rule=f"made from {dialogs.path.name}", hint="Give the dialogs that the tokens were made from.",
        )
    if checkpoint.manifest["outputs"]["tokenizer.json"] != tokens.manifest["outputs"]["tokenizer.json"]:
        raise ArtifactError(
            "was trained with another tokenizer than the token set has.", path=str(checkpoint.path), value=checkpoint.path.name,
            rule=f"the tokenizer of {tokens.path.name}", hint="Prepare the dialogs with that tokenizer: prepare.tokenizer=DIRECTORY.",
        )


@dataclass(frozen=True)
class _Other:
    """What a baseline did: its loss, or none; its replies, or none."""

    loss: SplitLoss | None
    replies: list[str] | None


class _Usable:
    """Whether a model could give the reply of an exchange: it fits `max_tokens`, and a system message leaves room to answer.

    Without this, one reply of thousands of words would outweigh all others in the corpus-level metrics.
    """

    def __init__(self, talker: ChatModel, sampling: Sampling) -> None:
        self.talker, self.sampling = talker, sampling

    def __call__(self, exchange: Exchange) -> bool:
        system = [message.content for message in exchange.history if message.role == "system"]
        lengths = [len(self.talker.tokenizer.encode(text)) for text in (exchange.reply, *system)]
        return lengths[0] <= self.sampling.max_tokens and sum(lengths[1:]) <= self.talker.context // 2


def _replies(talker: ChatModel, prompts: Sequence[Exchange], sampling: Sampling, seed: int) -> list[Reply]:
    own = sampling.model_copy(update={"seed": derived(seed, "evaluate", sampling.seed)})
    return talker.replies([prompt.history for prompt in prompts], own) if prompts else []


def _baselines(
    parts: Sequence[Baseline], seed: int, dialogs: Dialogs, tokens: TokenSet, split: TokenSplit, prompts: list[Exchange], bar: Progress
) -> dict[str, _Other]:
    examples = list(exchanges(dialogs.read("train"))) if parts else []
    found = {}
    for place, part in enumerate(parts):
        learned = part.learn(examples, tokens)
        found[part.name] = _Other(learned.loss(split), learned.replies(prompts, seed) if prompts else None)
        bar.update(3 + place, baseline=part.name)
    return found


def _model_it_started_from(checkpoint: Checkpoint) -> LanguageModel | None:
    start = start_of(checkpoint)
    return type(checkpoint).open(start).model() if start is not None and (start / MANIFEST).exists() else None


def _loss_scores(loss: SplitLoss, seed: int) -> Scores:
    return {name: dict(zip(("value", "low", "high"), found, strict=True)) for name, found in loss.intervals(seed).items()}


def _scored(
    metrics: Sequence[Metric], prompts: Sequence[Exchange], replies: list[str] | None, seed: int
) -> tuple[Scores, dict[str, str], dict[str, tuple[float, ...]]]:
    """Scores, notes and figures for single replies, by the metric's name; nothing where there are no replies."""
    if not replies:
        return {}, {}, {}
    items = [Item(p.conversation, p.question, p.reply, reply) for p, reply in zip(prompts, replies, strict=True)]
    scores = {metric.name: metric.score(items, seed) for metric in metrics}
    return (
        {name: score.as_dict() for name, score in scores.items()},
        {name: score.note for name, score in scores.items() if score.note},
        {name: score.per_item for name, score in scores.items() if score.per_item},
    )


def _difference(ours: SplitLoss, theirs: SplitLoss, seed: int) -> dict[str, float]:
    """Bits per byte, ours minus theirs, on the same conversations: paired, so what makes a conversation hard cancels out."""
    sums = np.stack(((ours.nll - theirs.nll) / math.log(2), ours.bytes), axis=1)
    return dict(zip(("value", "low", "high"), bootstrap.interval(sums, bootstrap.ratio, seed), strict=True))


def _rows(
    prompts: Sequence[Exchange], replies: Sequence[Reply], others: Mapping[str, _Other], single: Mapping[str, tuple[float, ...]]
) -> list[dict[str, Any]]:
    return [
        {
            "conversation": prompt.conversation,
            "history": [message.as_dict() for message in prompt.history],
            "reference": prompt.reply,
            "reply": reply.text,
            "finish_reason": reply.finish_reason,
            "forgotten": reply.forgotten,
            "baselines": {name: other.replies[place] for name, other in others.items() if other.replies is not None},
            "scores": {name: values[place] for name, values in single.items()},
        }
        for place, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
    ]
