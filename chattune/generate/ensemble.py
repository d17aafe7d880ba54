"""Ensembles: several models with one tokenizer answer together, token by token, or each by itself and then by vote.

At the level of tokens their probabilities are averaged: the loss of the average is at most the average of the losses (Jensen), for
every text. At the level of replies the one is taken that most agree with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from chattune.core.errors import SettingError, UsageError
from chattune.dialogs.near_duplicates import normalised
from chattune.generate.decoders import Decoder
from chattune.generate.decoding import same_tokens
from chattune.generate.reply import ChatModel, Messages, Reply
from chattune.generate.runner import Piece, Runner
from chattune.generate.speaker import candidates
from chattune.models.language_model import Cache, LanguageModel
from chattune.tokens.batch import Batch

_EXACT = 1e-9  # nats a token to which weights are fitted


def mixed(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """(…, vocabulary) float32 logits of the weighted mean of the probabilities that each of `logits` stands for.

    They stand where the members' stand on average (rules ask whether a logit is above 0): a member with all the weight is itself.
    """
    wide = torch.stack([each.float() for each in logits])
    share = torch.tensor(weights, dtype=wide.dtype, device=wide.device).view(-1, *[1] * (wide.ndim - 1))
    total = wide.logsumexp(-1, keepdim=True)
    return (wide - total + share.log()).logsumexp(0) + (share * total).sum(0)


class EnsembleModel(LanguageModel):
    """Models that predict together: the probability of a token is the weighted mean of theirs (by default all count alike).

    It decodes and is scored as any other model. Hidden states are those of all members side by side; its `family`, which tells the
    context, is that of the member that sees least. `UsageError` where vocabularies differ.
    """

    compiles = False

    def __init__(self, members: Sequence[LanguageModel], weights: Sequence[float] | None = None) -> None:
        if not members:
            raise UsageError("an ensemble of no models.", path="members", rule="one or more")
        sizes = [member.vocabulary for member in members]
        if len({*sizes}) > 1:
            raise UsageError(
                f"the models have vocabularies of {sizes} ids.", path="members", value=str(sizes), rule="one vocabulary",
                hint="Train them from one prepared token set.",
            )
        super().__init__(min((member.family for member in members), key=lambda family: family.context_length()), sizes[0])
        self.members = nn.ModuleList(members)
        self.shares = on_simplex(weights, len(members))
        with torch.inference_mode():
            self.widths = [member.hidden(torch.zeros(1, 1, dtype=torch.long, device=member.device)).shape[-1] for member in members]

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        caches: Sequence[Cache | None] = cache.members if isinstance(cache, _Caches) else [None] * len(self.members)
        found = [member.hidden(ids, positions, segments, own) for member, own in zip(self._models(), caches, strict=True)]
        return torch.cat([each.float() for each in found], dim=-1)

    def head(self, hidden: Tensor) -> Tensor:
        parts = zip(self._models(), torch.split(hidden, self.widths, dim=-1), strict=True)
        return mixed([member.head(part.to(member.dtype)) for member, part in parts], self.shares)

    def new_cache(self, rows: int, length: int) -> Cache:
        return _Caches([member.new_cache(rows, length) for member in self._models()])

    def set_dropout(self, rate: float) -> None:
        for member in self._models():
            member.set_dropout(rate)

    def _models(self) -> list[LanguageModel]:
        return list(self.members)  # type: ignore[arg-type]


class _Caches(Cache):
    """The caches of all members, which hold the same tokens; it can do what each of them can."""

    def __init__(self, members: Sequence[Cache]) -> None:
        self.members = list(members)
        self.rewinds = all(member.rewinds for member in members)  # type: ignore[misc]  # here it depends on the members
        self.joins = all(member.joins for member in members)  # type: ignore[misc]
        self.pads = all(member.pads for member in members)

    @property
    def length(self) -> int:
        return min(member.length for member in self.members)

    @property
    def lengths(self) -> Tensor:  # type: ignore[override]
        return self.members[0].lengths

    def select(self, rows: Tensor) -> None:
        for member in self.members:
            member.select(rows)

    def at(self, rows: Sequence[int], starts: Sequence[int]) -> Self:
        return type(self)([member.at(rows, starts) for member in self.members])

    def put(self, rows: Sequence[int], part: Self) -> None:
        for member, own in zip(self.members, part.members, strict=True):
            member.put(rows, own)

    def copy_row(self, source: int, target: int, length: int) -> None:
        for member in self.members:
            member.copy_row(source, target, length)


class EnsembleRunner:
    """Runners that predict together, as `EnsembleModel` does; each may be the fastest that its own model has."""

    def __init__(self, runners: Sequence[Runner], weights: Sequence[float] | None = None) -> None:
        if not runners or len({runner.vocabulary for runner in runners}) > 1:
            sizes = [runner.vocabulary for runner in runners]
            raise UsageError(f"the runners have vocabularies of {sizes} ids.", path="runners", rule="one or more, of one vocabulary")
        self.runners, self.shares = list(runners), on_simplex(weights, len(runners))
        self.slots, self.length = min(runner.slots for runner in runners), min(runner.length for runner in runners)
        self.vocabulary = runners[0].vocabulary
        self.rewinds, self.joins = all(runner.rewinds for runner in runners), all(runner.joins for runner in runners)
        self.why = f"{len(runners)} models together: " + "; ".join(runner.why for runner in runners)

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        with torch.inference_mode():
            return mixed([runner.forward(pieces) for runner in self.runners], self.shares)

    def copy(self, source: int, target: int, tokens: int) -> None:
        for runner in self.runners:
            runner.copy(source, target, tokens)


def together(chats: Sequence[ChatModel], weights: Sequence[float] | None = None) -> ChatModel:
    """Chat models as one that averages their probabilities; with the template and the sampling of the first.

    `UsageError` where they do not have one tokenizer and one way to render a conversation: an id would mean different things.
    """
    first, *others = chats
    probe = [{"role": "user", "content": "Hello, 你好"}]
    for number, other in enumerate(others, start=1):
        if not same_tokens(first.tokenizer, other.tokenizer):
            raise UsageError(
                f"model {number} has another tokenizer than the first.", path=f"models[{number}]", rule="one tokenizer",
                hint="Train all of them from one prepared token set; replies of unlike models can still be chosen by vote.",
            )
        if first.prompt_ids(probe) != other.prompt_ids(probe):
            raise UsageError(
                f"model {number} has another chat template than the first.", path=f"models[{number}]", rule="one chat template",
                hint="Train all of them from one prepared token set.",
            )
    return ChatModel(EnsembleModel([chat.model for chat in chats], weights), first.template, first.sampling)


def on_simplex(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights that are not negative and sum to one; equal ones where none are given."""
    if weights is None:
        return (1 / count,) * count
    wrong = len(weights) != count or any(not 0 <= weight <= 1 for weight in weights) or abs(math.fsum(weights) - 1) > 1e-6
    if wrong:
        raise SettingError(
            f"the weights of {count} models are {list(weights)}.", path="weights", value=str(list(weights)),
            rule="one for each, not negative, their sum 1", hint="Leave them out to let all count alike.",
        )
    return tuple(weight / math.fsum(weights) for weight in weights)


# Weights, fitted on a validation split


def target_logs(models: Sequence[LanguageModel], batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """(targets, models) float64 log-probabilities of all targets, and (targets,) their loss weights."""
    found: list[np.ndarray] = []
    importance: list[np.ndarray] = []
    modes = [model.training for model in models]
    try:
        with torch.no_grad():
            for batch in batches:
                found.append(np.stack([_logs(model.eval(), batch.to(model.device)) for model in models], axis=1))
                importance.append(batch.weights.flatten()[batch.learned].double().numpy())
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    return np.concatenate(found), np.concatenate(importance)


def _logs(model: LanguageModel, batch: Batch) -> np.ndarray:
    hidden = model.hidden(batch.inputs, batch.positions, batch.segments).flatten(0, 1)[batch.learned]
    log = model.head(hidden).double().log_softmax(-1)
    found: np.ndarray = log.gather(-1, batch.targets.flatten()[batch.learned][:, None])[:, 0].cpu().numpy()
    return found


def fitted_weights(logs: np.ndarray, importance: np.ndarray | None = None) -> tuple[float, ...]:
    """Weights of the members under which the targets are likeliest together.

    `logs`: (targets, members) log-probabilities, −∞ allowed; `importance`: (targets,), 1 by default. Expectation maximisation from
    equal weights: the likelihood of a mixture is concave in them and rises at each step (Dempster, Laird & Rubin 1977), and its
    distance from the best is at most the largest relative gain less one, so that it is known when to stop. The loss is never above
    that of the equal weights, nor above that of the best member alone.
    """
    logs = np.asarray(logs, dtype=np.float64)
    share = np.ones(len(logs)) if importance is None else np.asarray(importance, dtype=np.float64)
    most = logs.max(axis=1)
    if not len(logs) or not share.sum() > 0 or np.isneginf(most).any():
        raise UsageError(
            "the weights cannot be fitted.", path="logs", value=str(logs.shape),
            rule="one or more targets, each possible for one member or more", hint="Give a validation split with targets.",
        )
    share, likelihood = share / share.sum(), np.exp(logs - most[:, None])  # the largest of a row is 1
    weights = np.full(logs.shape[1], 1 / logs.shape[1])
    for _ in range(10_000):
        gain = share @ (likelihood / (likelihood @ weights)[:, None])  # (members,): derivative of the likelihood
        if gain.max() - 1 < _EXACT:
            break
        weights = weights * gain / (weights @ gain)
    with np.errstate(divide="ignore"):
        alone = share @ np.maximum(np.log(likelihood), -1e300)
    if alone.max() >= share @ np.log(likelihood @ weights):  # a corner, which the steps come near but do not reach
        weights = np.eye(logs.shape[1])[int(alone.argmax())]
    return tuple(weights.tolist())


# Replies that were found apart


def replies_of(
    chats: Sequence[ChatModel], messages: Messages, decoder: Decoder, limit: int | None = None, seed: int = 0
) -> list[Reply]:
    """What each model answers, by `decoder` (`best_of` draws several), one model after the other. Their tokenizers may differ."""
    return [found.reply for chat in chats for found in candidates(chat, messages, decoder, limit, seed)]


@dataclass(frozen=True, slots=True)
class Vote:
    """The answer with the most votes: the `number` of the first reply that gives it, and its `share` of all votes."""

    number: int
    share: float
    counts: tuple[tuple[str, int], ...]


def majority(replies: Sequence[str], answer: Callable[[str], str] = normalised) -> Vote:
    """Self-consistency: which answer most replies give. `answer` takes what counts out of a reply; by default the whole of it, in
    small letters and without punctuation. Of answers with equal votes the one that came first wins.

    Source: Wang et al. 2022, arXiv:2203.11171.
    """
    if not replies:
        raise UsageError("a vote of no replies.", path="replies", rule="one or more")
    counts: dict[str, list[int]] = {}
    for number, reply in enumerate(replies):
        counts.setdefault(answer(reply), []).append(number)
    best = max(counts.values(), key=len)  # the first of the largest
    return Vote(best[0], len(best) / len(replies), tuple((said, len(voters)) for said, voters in counts.items()))


def least_risk(replies: Sequence[str], weights: Sequence[float] | None = None) -> int:
    """The number of the reply most like all the others: minimum Bayes risk with chrF as the likeness; of equals the first.

    `weights`: how likely each reply is; by default all are alike. Source: Kumar & Byrne 2004; chrF of sacrebleu.
    """
    from sacrebleu.metrics.chrf import CHRF

    if not replies:
        raise UsageError("a choice of no replies.", path="replies", rule="one or more")
    shares, judge = on_simplex(weights, len(replies)), CHRF()
    different = [*dict.fromkeys(replies)]
    share = {reply: math.fsum(shares[number] for number, other in enumerate(replies) if other == reply) for reply in different}
    gains = [math.fsum(share[other] * _likeness(judge, reply, other) for other in different) for reply in different]
    return replies.index(different[int(np.argmax(gains))])


def _likeness(judge: Any, reply: str, reference: str) -> float:
    return 100.0 if reply == reference else float(judge.sentence_score(reply, [reference]).score)
