"""Replies: from messages to text, token by token. The one stream of events that chat, evaluation and serving consume.

A reply follows from the weights, the prompt and the sampling: each prompt draws from a stream of its own, derived from the seed
and the prompt's ids, so it does not matter whether it is answered alone or among hundreds.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, ValidationError, field_validator, model_validator

from chattune.core.config import validate
from chattune.core.errors import UsageError
from chattune.core.part import Settings, part_list, setting
from chattune.dialogs.dialog import Message
from chattune.generate.rules import Rule
from chattune.generate.rules.frequency_penalty import FrequencyPenalty
from chattune.generate.rules.logit_bias import LogitBias
from chattune.generate.rules.min_p import MinP
from chattune.generate.rules.no_repeat_ngram import NoRepeatNgram
from chattune.generate.rules.presence_penalty import PresencePenalty
from chattune.generate.rules.repetition_penalty import RepetitionPenalty
from chattune.generate.rules.temperature import Temperature
from chattune.generate.rules.top_k import TopK
from chattune.generate.rules.top_p import TopP
from chattune.generate.rules.typical_p import TypicalP

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.generate.decoding import Decoding
    from chattune.generate.engine import Ask, Engine, EngineLoad
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.template import Template

ROWS = 32  # replies decoded side by side
_CHUNK = 4096  # prompt tokens read in a step: nobody waits between two of them
_SHORTEST = 8  # tokens of the newest message that are worth answering
Messages = Sequence[Message | Mapping[str, Any]]


def _strings(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Sampling(Settings):
    """How tokens are chosen when a reply is decoded; nothing here acts in training."""

    temperature: float = setting(0.7, "below 1: safer, above: wilder, 0: always the likeliest token", low=0.0, high=100.0)
    top_k: int = setting(0, "draw from so many of the likeliest tokens; 0: all", low=0)
    top_p: float = setting(0.9, "draw from the likeliest tokens that hold this share of probability; 1: all", above=0.0, high=1.0)
    min_p: float = setting(0.0, "leave out tokens below this share of the likeliest one's probability; 0: none", low=0.0, high=1.0)
    typical_p: float = setting(1.0, "draw from tokens about as surprising as expected, to this share; 1: all", above=0.0, high=1.0)
    repetition_penalty: float = setting(1.1, "above 1: tokens that were said become less likely", low=1.0, high=10.0)
    presence_penalty: float = setting(0.0, "taken from the logit of a token that the reply holds", low=-2.0, high=2.0)
    frequency_penalty: float = setting(0.0, "taken from a token's logit for each time the reply holds it", low=-2.0, high=2.0)
    no_repeat_ngram: int = setting(0, "tokens in a run that comes only once; 0: runs may repeat", low=0, high=1024)
    logit_bias: Mapping[int, float] = setting({}, "token id → what is added to its logit, -100 (never) to 100 (only this)")
    stop: Annotated[tuple[str, ...], BeforeValidator(_strings)] = setting((), "texts that end a reply; they are not part of it")
    min_tokens: int = setting(0, "no end and no stop text before so many tokens", low=0, high=1048576)
    max_tokens: int = setting(128, "end a reply after so many tokens", low=1, high=1048576)
    grammar: Mapping[str, Any] | None = setting(None, "what a reply may be: {json_schema: …}, {regex: …} or {json_object: true}")
    seed: int = setting(0, "the same seed gives the same reply")
    rules: Annotated[tuple[Rule, ...], BeforeValidator(part_list)] = setting((), "further rules, applied after the others")

    @field_validator("logit_bias")
    @classmethod
    def _a_bias(cls, bias: Mapping[int, float]) -> Mapping[int, float]:
        return LogitBias.within_limits(bias)

    @field_validator("stop")
    @classmethod
    def _some_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty text would end every reply before it began")
        return stop

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} lies above max_tokens {self.max_tokens}")
        return self

    @classmethod
    def recommended(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that a ``generation_config.json`` names and that lie within our limits."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty") if said.get("do_sample") else ("repetition_penalty",)
        wanted = {name: said.get(name) for name in names} | {"max_tokens": said.get("max_new_tokens")}
        found: dict[str, Any] = {}
        for name, value in wanted.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                try:
                    cls.model_validate({name: value})
                except ValidationError:
                    continue  # outside of what can be meant: our own default stands
                found[name] = value
        return found

    def in_order(self) -> list[Rule]:
        """The rules that change something, in the order in which they are applied."""
        rules = [
            RepetitionPenalty(penalty=self.repetition_penalty), PresencePenalty(penalty=self.presence_penalty),
            FrequencyPenalty(penalty=self.frequency_penalty), NoRepeatNgram(size=self.no_repeat_ngram), LogitBias(bias=self.logit_bias),
            Temperature(temperature=self.temperature), TopK(k=self.top_k), TopP(p=self.top_p), MinP(p=self.min_p),
            TypicalP(p=self.typical_p),
        ]  # fmt: skip
        return [*(rule for rule in rules if rule != type(rule)()), *self.rules]


class Speculation(Settings):
    """Tokens are proposed cheaply, and the model looks at several of them in one pass: how many, and from where.

    It pays where few requests run and where what they say stands in the conversation already (quotes, lists, code), or where a draft
    model says much the same several times faster. A lookup changes no reply; a draft model changes no likeliest token and no
    distribution, but draws are other ones.
    """

    lookup: int = setting(6, "tokens proposed from an earlier place that went on alike; 0: none", low=0, high=64)
    match: int = setting(3, "tokens before it that must be the same there", low=1, high=16)
    draft: int = setting(4, "tokens proposed by a draft model, where there is one; 0: none", low=0, high=64)

    @classmethod
    def meant(cls, said: str | Mapping[str, Any] | Speculation, path: str = "speculation") -> Speculation:
        """What ``"lookup"``, a mapping of settings, or the settings themselves mean."""
        if isinstance(said, Speculation):
            return said
        if said == "lookup":
            return cls()
        if not isinstance(said, Mapping):
            raise UsageError(
                f"'{said}' proposes nothing.", path=path, value=said, rule="lookup, or settings such as {lookup: 8, match: 2}",
                hint=f"There are: {', '.join(cls.model_fields)}.",
            )  # fmt: skip
        return validate(cls, said, prefix=path)


@dataclass(frozen=True, slots=True)
class ReplyEvent:
    """One step of a reply. `text`: what became complete with this token, possibly nothing: a character is never split.

    The last event has a `finish_reason` and no token. ``"stop"``: the model ended its turn, or a stop text came, of which nothing is
    given; ``"length"``: a limit did; ``"cancelled"`` and ``"error"``: as they say. `logprob` of the token and `alternatives`, the
    likeliest tokens, where they were asked for: log-probabilities of the model's own distribution, before any rule.
    `forgotten`: messages at the beginning of the history that did not fit into the context; the newest one counts when its own
    beginning was cut.
    """

    text: str
    token: int | None
    finish_reason: str | None = None
    forgotten: int = 0
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: its text, the ids that were drawn (without the end of turn), why it ended, and how much was `forgotten`."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    forgotten: int = 0


class ChatModel:
    """A model that answers. Messages are `Message` or ``{"role", "content"}``; their history is the caller's.

    Control tokens other than those that end a turn are never drawn. Where the history does not fit into the context, the system
    message and the newest turns are kept, and the events say how many were forgotten. `sampling` is used where none is asked for;
    `decoding`: how replies are computed; without it as in training, by PyTorch.

    It may be asked from several threads. What was read of a conversation stays in memory until `close`, so that it goes on from there.
    """

    def __init__(
        self, model: LanguageModel, template: Template, sampling: Sampling | None = None, decoding: Decoding | None = None
    ) -> None:
        self.model, self.template, self.tokenizer = model.eval(), template, template.tokenizer
        self.sampling, self.decoding = sampling or Sampling(), decoding
        self.context = model.family.context_length()
        self.ends = frozenset(self.tokenizer.ends)
        self._lock = threading.Lock()
        self._kept: tuple[Engine, object] | None = None  # with the state of the weights that it was made of
        if decoding is not None:
            decoding.check(self)

    def decoded_by(self, decoding: Decoding) -> ChatModel:
        """The same model, its replies computed in another way. Refuses (`UsageError`) what cannot be followed."""
        return type(self)(self.model, self.template, self.sampling, decoding)

    def reply(self, text_or_messages: str | Messages, **sampling: Any) -> str:
        """The answer to a text, or to messages; keywords are the settings of `Sampling`."""
        messages = [Message("user", text_or_messages)] if isinstance(text_or_messages, str) else text_or_messages
        return self.replies([messages], self.sampled(sampling))[0].text

    def sampled(self, settings: Mapping[str, Any]) -> Sampling:
        """The usual sampling with some settings of it changed."""
        return validate(Sampling, {**self.sampling.model_dump(exclude={"rules"}), "rules": self.sampling.rules, **settings})

    def stream(self, messages: Messages, sampling: Sampling | None = None) -> Iterator[ReplyEvent]:
        """The reply as it is drawn: an event for each token, and a last one with the reason why it ended."""
        sampling = sampling or self.sampling
        prompt, forgotten = self.fitted(messages, sampling)
        with self._engine() as engine:
            for event in engine.stream(self._ask(prompt, sampling)):
                yield replace(event, forgotten=forgotten) if forgotten else event

    def replies(self, many: Sequence[Messages], sampling: Sampling | None = None) -> list[Reply]:
        """A reply to each of many conversations, in their order; decoded side by side."""
        sampling = sampling or self.sampling
        prompts = [self.fitted(messages, sampling) for messages in many]
        asks = [self._ask(prompt, sampling) for prompt, _ in prompts]
        with self._engine(len(asks)) as engine:
            replies = engine.run(asks)
        return [replace(reply, forgotten=forgotten) for reply, (_, forgotten) in zip(replies, prompts, strict=True)]

    def figures(self) -> EngineLoad | None:
        """What was decoded since the first reply, such as the tokens that speculation proposed; none before it, and after `close`."""
        with self._lock:
            return None if self._kept is None else self._kept[0].load()

    def close(self) -> None:
        """Give back what conversations left in memory, and end replies that are not finished. The next reply begins anew."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept[0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The ids after which the model answers these messages."""
        return self.template.prompt(messages)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(time, vocabulary) float32: what the model expects after each of `ids`."""
        import torch

        with torch.no_grad():  # not inference_mode: the caller may go on with what it gets
            return self.model(torch.tensor([list(ids)], device=self.model.device))[0].float()  # type: ignore[no-any-return]

    def _ask(self, prompt: list[int], sampling: Sampling) -> Ask:
        from chattune.generate.engine import Ask

        return Ask(tuple(prompt), sampling)

    @contextmanager
    def _engine(self, replies: int = 1) -> Iterator[Engine]:
        """The engine that is kept; another one where it has too few places, and where the weights have changed since."""
        with self._lock:
            weights = tuple(_version(tensor) for tensor in (*self.model.parameters(), *self.model.buffers()))
            slots = min(max(replies, 1), ROWS)
            if self._kept is None or self._kept[0].runner.slots < slots or self._kept[1] != weights:
                # On the processor a place that is not used takes no memory.
                self._kept = self._made(ROWS if self.model.device.type == "cpu" else slots), weights
            engine = self._kept[0]
        try:
            yield engine
        except (KeyboardInterrupt, SystemExit):  # in the midst of a step: nobody knows what the engine holds
            with self._lock:
                if self._kept is not None and self._kept[0] is engine:
                    self._kept = None
            raise

    def _made(self, slots: int) -> Engine:
        from chattune.generate.engine import Engine

        if self.decoding is not None:
            return self.decoding.engine(self, slots=slots, chunk=_CHUNK)
        return Engine(self.model, self.tokenizer, slots=slots, chunk=_CHUNK)

    def fitted(self, messages: Messages, sampling: Sampling) -> tuple[list[int], int]:
        """Prompt ids that leave room for a reply (a quarter of the context at most), and how many messages were forgotten for it."""
        messages = list(messages)
        room = self.context - min(sampling.max_tokens, max(1, self.context // 4))
        prompt = self.template.prompt(messages)
        if len(prompt) <= room:
            return prompt, 0
        first = 1 if _role(messages[0]) == "system" else 0
        system, turns = messages[:first], self.template.beginnings(messages, first)
        # The later a history begins, the shorter it is.
        place = bisect.bisect_left(turns, True, key=lambda start: len(self.template.prompt([*system, *messages[start:]])) <= room)
        if place < len(turns):
            return self.template.prompt([*system, *messages[turns[place] :]]), turns[place] - first
        if first == len(messages):
            spare = 0
        else:
            role, content = _role(messages[-1]), self.tokenizer.encode(_content(messages[-1]))
            spare = room - len(self.template.prompt([*system, Message(role, "")]))
        if spare < _SHORTEST:
            told = len(self.template.prompt(system)) if system else len(prompt)
            raise UsageError(
                f"the system message leaves no room to answer in a context of {self.context} tokens.", path="messages[0]",
                value=told, rule=f"at most {room - 4 - _SHORTEST} tokens", hint="Shorten it, or train with a larger model.context.",
            )
        for length in range(spare, 0, -1):
            # The end of the newest turn. It may begin within a character, and encode to a few more ids than it was cut to.
            text = self.tokenizer.decode(content[-length:]).lstrip("\ufffd")
            prompt = self.template.prompt([*system, Message(role, text)])
            if len(prompt) <= room:
                break
        return prompt, len(messages) - first


def drawn_at(logits: Tensor, chance: Tensor) -> Tensor:
    """The token of each row at which the running sum of probabilities passes `chance`.

    `logits`: (rows, vocabulary), −∞ where a token must not come; `chance`: (rows,) float64 from 0 to below 1.
    """
    import torch

    reached = logits.double().softmax(-1).cumsum(-1)
    # Scaled to the sum as rounded; below it by more than a rounding error, so that the token found has a probability above 0.
    mark = chance.clamp(max=1 - 1e-12) * reached[:, -1]
    return torch.searchsorted(reached, mark[:, None], right=True)[:, 0]


def _version(tensor: Tensor) -> tuple[int, int]:
    """Another one when the numbers of the tensor have changed."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _role(message: Message | Mapping[str, Any]) -> str:
    return message.role if isinstance(message, Message) else message["role"]


def _content(message: Message | Mapping[str, Any]) -> str:
    return message.content if isinstance(message, Message) else message["content"]
