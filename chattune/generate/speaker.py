"""What decoders speak through: a model with what may follow, step by step from its cache, and whole replies from it.

Decoders look at many ways to go on from one prompt; a `Progress` holds them as rows of one cache, which every family has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from chattune.core.config import validate
from chattune.core.errors import UsageError
from chattune.generate.reply import Reply, ReplyEvent, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.generate.decoders import Candidate, Decoder
    from chattune.generate.reply import ChatModel, Messages
    from chattune.models.language_model import LanguageModel


@dataclass(frozen=True)
class Speaker:
    """A model in evaluation mode, replying in at most `limit` tokens. `ends`: ids that end a reply; `never`: ids it never holds."""

    model: LanguageModel
    ends: frozenset[int]
    never: tuple[int, ...] = ()
    limit: int = 128
    seed: int = 0

    @classmethod
    def of(cls, chat: ChatModel, limit: int | None = None, seed: int = 0) -> Speaker:
        """What a chat model speaks through; `limit` defaults to its usual one."""
        tokenizer = chat.tokenizer
        never = (*tokenizer.never, *range(tokenizer.vocabulary, chat.model.vocabulary))
        return cls(chat.model, chat.ends, never, limit or chat.sampling.max_tokens, seed)

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that a reply to this prompt may have."""
        context = self.model.family.context_length()
        if not 0 < len(prompt) < context:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens leaves no room for a reply: {context} tokens fit together.", path="prompt",
                value=len(prompt), rule=f"1 to {context - 1} tokens", hint="Shorten it.",
            )
        return min(self.limit, context - len(prompt))

    def begin(self, prompt: Sequence[int]) -> Progress:
        """The prompt, read once: one row."""
        return Progress(self, prompt)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """(…, vocabulary) float64 log-probabilities of the next token, −∞ where it must not come."""
        logits = self.model.head(hidden).double()
        logits[..., list(self.never)] = float("-inf")
        return logits.log_softmax(-1)


class Progress:
    """Replies to one prompt side by side. `log`: (rows, vocabulary) of what may come next; `hidden`: (rows, width) behind it; `read`:
    (time, width), the hidden states of the prompt."""

    log: Tensor
    hidden: Tensor

    def __init__(self, speaker: Speaker, prompt: Sequence[int]) -> None:
        import torch

        self._speaker, self._model = speaker, speaker.model
        with torch.inference_mode():
            self._cache = self._model.new_cache(1, len(prompt) + speaker.room(prompt))
            self.read = self._model.hidden(self._ids([list(prompt)]), cache=self._cache)[0]
            self._now(self.read[-1:])

    def go_on(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Let row n be what row ``rows[n]`` was, and then ``tokens[n]``."""
        import torch

        with torch.inference_mode():
            self.keep(rows)
            self._now(self._model.hidden(self._ids([[token] for token in tokens]), cache=self._cache)[:, -1])

    def keep(self, rows: Sequence[int]) -> None:
        """Let row n be what row ``rows[n]`` was."""
        import torch

        with torch.inference_mode():
            index = self._ids(list(rows))
            self._cache.select(index)
            self.hidden, self.log = self.hidden[index], self.log[index]

    def _now(self, hidden: Tensor) -> None:
        self.hidden, self.log = hidden, self._speaker.log_probabilities(hidden)

    def _ids(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        import torch

        return torch.tensor(ids, device=self._model.device)


@dataclass(frozen=True, slots=True)
class ScoredReply:
    """A reply, and the candidate that it is: its score, log-probabilities and what else its decoder measured."""

    reply: Reply
    candidate: Candidate


def candidates(
    chat: ChatModel, messages: Messages, decoder: Decoder, limit: int | None = None, seed: int = 0
) -> list[ScoredReply]:
    """The replies that `decoder` finds to these messages, the best first; messages that do not fit are refused (`UsageError`)."""
    return _found(chat, chat.prompt_ids(messages), decoder, limit, seed)


def _found(chat: ChatModel, prompt: Sequence[int], decoder: Decoder, limit: int | None, seed: int) -> list[ScoredReply]:
    found = []
    for candidate in decoder.decode(Speaker.of(chat, limit, seed), prompt):
        said = candidate.tokens[:-1] if candidate.finish_reason == "stop" else candidate.tokens
        found.append(ScoredReply(Reply(chat.tokenizer.decode(said), said, candidate.finish_reason), candidate))
    return found


@dataclass(frozen=True)
class Searching:
    """A chat model that answers with the best candidate of a decoder, whole; for the conversation in a terminal."""

    chat: ChatModel
    decoder: Decoder

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[ReplyEvent]:
        """The reply as one event. Of `sampling` what is `acting` acts: a decoder searches instead of drawing. Of a history that does
        not fit as much is forgotten as where replies are drawn."""
        prompt, forgotten = self.chat.fitted(messages, sampling)
        reply = _found(self.chat, prompt, self.decoder, sampling.max_tokens, sampling.seed)[0].reply
        yield ReplyEvent(reply.text, None, reply.finish_reason, forgotten)

    @property
    def acting(self) -> tuple[str, ...]:
        """Settings of `Sampling` that act: the length, and the seed where anything is drawn."""
        return ("max_tokens", "seed") if self.decoder.draws else ("max_tokens",)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the decoder."""
        return self.decoder.model_dump()

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """With other settings of the decoder; those of drawing are refused (`UsageError`) by name."""
        known = (*self.acting, *self.settings)
        for name, value in settings.items():
            if name in Sampling.model_fields and name not in known:
                raise UsageError(
                    f"acts on drawing, and {self.decoder.name} searches.", path=name, value=value, rule=f"one of {', '.join(known)}",
                    hint=f"Here act: {', '.join(known)}.",
                )
        return replace(self, decoder=validate(type(self.decoder), {**self.settings, **settings}))
