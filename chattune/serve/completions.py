"""From events to OpenAI's choices: a chat's messages and a text's continuation, whole or chunk by chunk.

Both are made of the same events, so a streamed reply is the plain one, cut.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chattune.serve.tools import before_calls, calls_in
from chattune.serve.wire import usage

if TYPE_CHECKING:
    from chattune.generate.reply import ReplyEvent


@dataclass
class Choice:
    """One reply so far."""

    events: list[ReplyEvent] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None

    @property
    def tokens(self) -> int:
        return sum(event.token is not None for event in self.events)

    def add(self, event: ReplyEvent) -> None:
        self.events.append(event)
        self.text += event.text
        self.finish_reason = event.finish_reason or self.finish_reason


class Form:
    """The shape of an answer: its head, and how a choice stands in it. `pieces`: the bytes of each token; `logprobs`: how many
    alternatives, none: none at all."""

    prefix, whole_object, chunk_object = "", "", ""

    def __init__(self, model: str, pieces: Sequence[bytes], logprobs: int | None, include_usage: bool) -> None:
        self.pieces, self.logprobs, self.include_usage = pieces, logprobs, include_usage
        self.head = {"id": self.prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
        """The answer in one piece."""
        said = [{"index": index, **self._choice(choice)} for index, choice in enumerate(choices)]
        return self._headed(self.whole_object, said) | {"usage": usage(prompt_tokens, sum(choice.tokens for choice in choices))}

    def opening(self, count: int) -> list[dict[str, Any]]:
        """The chunks before any text."""
        return []

    def chunk(self, index: int, event: ReplyEvent, before: Choice) -> dict[str, Any] | None:
        """What `event` adds to the choice `before` it; none where that is nothing."""
        if not event.text and event.finish_reason is None and (self.logprobs is None or event.token is None):
            return None
        return self._chunked([{"index": index, **self._piece(event, before)}])

    def closing(self, choices: Sequence[Choice], prompt_tokens: int) -> list[dict[str, Any]]:
        """The chunk after all choices: the usage, where it was asked for."""
        if not self.include_usage:
            return []
        return [self._headed(self.chunk_object, []) | {"usage": usage(prompt_tokens, sum(choice.tokens for choice in choices))}]

    def _chunked(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._headed(self.chunk_object, choices)
        return chunk | {"usage": None} if self.include_usage else chunk

    def _headed(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.head["id"], "object": kind, **self.head, "choices": choices}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, event: ReplyEvent, before: Choice) -> dict[str, Any]:
        raise NotImplementedError


class ChatForm(Form):
    """``chat.completion``."""

    prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    functions: Sequence[str] = ()  # that may be called: what may be a call is held back until it is known to be one

    def opening(self, count: int) -> list[dict[str, Any]]:
        start = {"role": "assistant", "content": ""}
        return [
            self._chunked([{"index": index, "delta": start, "logprobs": None, "finish_reason": None}]) for index in range(count)
        ]

    def _choice(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        reason = choice.finish_reason
        if calls := self._calls(choice.text, reason):
            message |= {"content": choice.text[: before_calls(choice.text)] or None, "tool_calls": calls}
            reason = "tool_calls"
        return {"message": message, "logprobs": self._logprobs(choice.events), "finish_reason": reason}

    def _piece(self, event: ReplyEvent, before: Choice) -> dict[str, Any]:
        text, reason = event.text, event.finish_reason
        delta: dict[str, Any] = {}
        if self.functions:
            whole, given = before.text + event.text, before_calls(before.text)
            calls = self._calls(whole, reason)
            text = whole[given : before_calls(whole) if calls or reason is None else None]
            if calls:
                delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
                reason = "tool_calls"
        if text or event.token is not None:
            delta["content"] = text
        return {"delta": delta, "logprobs": self._logprobs([event]) if event.token is not None else None, "finish_reason": reason}

    def _calls(self, text: str, reason: str | None) -> list[dict[str, Any]]:
        return calls_in(text, self.functions) if self.functions and reason == "stop" else []

    def _logprobs(self, events: Iterable[ReplyEvent]) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        return {"content": [self._entry(event) for event in events if event.token is not None], "refusal": None}

    def _entry(self, event: ReplyEvent) -> dict[str, Any]:
        assert event.token is not None
        others = [self._token(token, logprob) for token, logprob in event.alternatives[: self.logprobs]]
        return {**self._token(event.token, event.logprob), "top_logprobs": others}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        piece = self.pieces[token]
        return {"token": shown(piece), "logprob": finite(logprob), "bytes": list(piece)}


class TextForm(Form):
    """``text_completion``."""

    prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def _choice(self, choice: Choice) -> dict[str, Any]:
        return {"text": choice.text, "logprobs": self._logprobs(choice.events, 0), "finish_reason": choice.finish_reason}

    def _piece(self, event: ReplyEvent, before: Choice) -> dict[str, Any]:
        logprobs = self._logprobs([event], len(before.text)) if event.token is not None else None
        return {"text": event.text, "logprobs": logprobs, "finish_reason": event.finish_reason}

    def _logprobs(self, events: Iterable[ReplyEvent], offset: int) -> dict[str, Any] | None:
        """The older form: four lists side by side; `text_offset` is where the text stood when the token was drawn."""
        if self.logprobs is None:
            return None
        found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for event in events:
            if event.token is not None:
                found["tokens"].append(shown(self.pieces[event.token]))
                found["token_logprobs"].append(finite(event.logprob))
                tops = event.alternatives[: self.logprobs]
                found["top_logprobs"].append(self._tops(tops) if self.logprobs else None)
                found["text_offset"].append(offset)
            offset += len(event.text)
        return found

    def _tops(self, tops: Iterable[tuple[int, float]]) -> Mapping[str, float]:
        return {shown(self.pieces[token]): finite(logprob) for token, logprob in tops}


def shown(piece: bytes) -> str:
    """The text of a token; a part of a character is written as OpenAI does, ``bytes:\\xe4\\xbd``."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def finite(logprob: float | None) -> float:
    """JSON has no −∞; OpenAI writes −9999 for it."""
    return max(-9999.0, logprob) if logprob is not None else -9999.0
