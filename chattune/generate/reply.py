"""Replies: from messages to text, token by token. The one stream of events that chat, evaluation and serving consume.

A reply follows from the weights, the prompt and the sampling: each prompt draws from a stream of its own, derived from the seed
and the prompt's ids, so it does not matter whether it is answered alone or among hundreds.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ValidationError

from chattune.core.config import validate
from chattune.core.errors import UsageError
from chattune.core.part import Settings, part_list, setting
from chattune.core.seeds import generator
from chattune.dialogs.dialog import Message
from chattune.generate.rules import Rule
from chattune.generate.rules.min_p import MinP
from chattune.generate.rules.repetition_penalty import RepetitionPenalty
from chattune.generate.rules.temperature import Temperature
from chattune.generate.rules.top_k import TopK
from chattune.generate.rules.top_p import TopP

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from chattune.models.language_model import LanguageModel
    from chattune.tokens.template import Template

ROWS = 32  # replies decoded side by side
_SHORTEST = 8  # tokens of the newest message that are worth answering
Messages = Sequence[Message | Mapping[str, Any]]


class Sampling(Settings):
    """How tokens are chosen when a reply is decoded; nothing here acts in training."""

    temperature: float = setting(0.7, "below 1: safer, above: wilder, 0: always the likeliest token", low=0.0, high=100.0)
    top_k: int = setting(0, "draw from so many of the likeliest tokens; 0: all", low=0)
    top_p: float = setting(0.9, "draw from the likeliest tokens that hold this share of probability; 1: all", above=0.0, high=1.0)
    min_p: float = setting(0.0, "leave out tokens below this share of the likeliest one's probability; 0: none", low=0.0, high=1.0)
    repetition_penalty: float = setting(1.1, "above 1: tokens that were said become less likely", low=1.0, high=10.0)
    max_tokens: int = setting(128, "end a reply after so many tokens", low=1, high=1048576)
    seed: int = setting(0, "the same seed gives the same reply")
    rules: Annotated[tuple[Rule, ...], BeforeValidator(part_list)] = setting((), "further rules, applied after the others")

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
            RepetitionPenalty(penalty=self.repetition_penalty), Temperature(temperature=self.temperature), TopK(k=self.top_k),
            TopP(p=self.top_p), MinP(p=self.min_p),
        ]  # fmt: skip
        return [*(rule for rule in rules if rule != type(rule)()), *self.rules]


@dataclass(frozen=True, slots=True)
class ReplyEvent:
    """One step of a reply. `text`: what became complete with this token, possibly nothing: a character is never split.

    The last event has a `finish_reason` (``"stop"``: the model ended its turn; ``"length"``: a limit did) and no token.
    `forgotten`: messages at the beginning of the history that did not fit into the context; the newest one counts when its own
    beginning was cut.
    """

    text: str
    token: int | None
    finish_reason: str | None = None
    forgotten: int = 0


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
    message and the newest turns are kept, and the events say how many were forgotten. `sampling` is used where none is asked for.
    """

    def __init__(self, model: LanguageModel, template: Template, sampling: Sampling | None = None) -> None:
        self.model, self.template, self.tokenizer = model.eval(), template, template.tokenizer
        self.sampling = sampling or Sampling()
        self.context = model.family.context_length()
        self.ends = frozenset(self.tokenizer.ends)
        self._never = [*self.tokenizer.never, *range(self.tokenizer.vocabulary, model.vocabulary)]

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
        prompt, forgotten = self._fitted(messages, sampling)
        text = self.tokenizer.stream()
        reason = "length"
        for ((_, token),) in self._drawn([prompt], sampling):
            if token in self.ends:
                reason = "stop"
                break
            yield ReplyEvent(text.push(token), token, forgotten=forgotten)
        yield ReplyEvent(text.finish(), None, reason, forgotten)

    def replies(self, many: Sequence[Messages], sampling: Sampling | None = None) -> list[Reply]:
        """A reply to each of many conversations, in their order; decoded side by side, prompts of like length together."""
        sampling = sampling or self.sampling
        prompts = [self._fitted(messages, sampling) for messages in many]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number][0]))
        drawn: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), ROWS):
            numbers = order[start : start + ROWS]
            for step in self._drawn([prompts[number][0] for number in numbers], sampling):
                for row, token in step:
                    drawn[numbers[row]].append(token)
        return [self._reply(tokens, forgotten) for tokens, (_, forgotten) in zip(drawn, prompts, strict=True)]

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The ids after which the model answers these messages."""
        return self.template.prompt(messages)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(time, vocabulary) float32: what the model expects after each of `ids`."""
        import torch

        with torch.no_grad():  # not inference_mode: the caller may go on with what it gets
            return self.model(torch.tensor([list(ids)], device=self.model.device))[0].float()  # type: ignore[no-any-return]

    def _reply(self, tokens: list[int], forgotten: int) -> Reply:
        stopped = bool(tokens) and tokens[-1] in self.ends
        said = tokens[:-1] if stopped else tokens
        return Reply(self.tokenizer.decode(said), tuple(said), "stop" if stopped else "length", forgotten)

    def _drawn(self, prompts: list[list[int]], sampling: Sampling) -> Iterator[list[tuple[int, int]]]:
        """Step by step, (number of the prompt, next token) for each prompt whose reply goes on, its end of turn included."""
        import torch

        rules, device = sampling.in_order(), self.model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        limits = [min(sampling.max_tokens, self.context - len(prompt)) for prompt in prompts]
        chances = torch.from_numpy(_chances(prompts, limits, sampling.seed)).to(device)
        longest = max(len(prompt) for prompt in prompts)
        rows = torch.arange(len(prompts), device=device)
        history = torch.full((len(prompts), longest + max(limits)), -1, device=device)
        for row, prompt in enumerate(prompts):
            history[row, : len(prompt)] = torch.tensor(prompt, device=device)
        numbers, step = list(range(len(prompts))), 0
        with torch.inference_mode():
            cache = self.model.new_cache(len(prompts), history.shape[1])
            start = history[:, :longest]
            segments = None if int(lengths.min()) == longest else torch.where(start < 0, -1, 0)
            hidden = self.model.hidden(start.clamp(min=0), segments=segments, cache=cache)[rows, lengths - 1]
        while True:
            with torch.inference_mode():
                logits = self.model.head(hidden).float()
                logits[:, self._never] = -torch.inf
                for rule in rules:
                    logits = rule.adjust(logits, history)
                chosen = drawn_at(logits, chances[:, step])
            tokens = chosen.tolist()
            drawn = list(zip(numbers, tokens, strict=True))
            yield [(number, token) for number, token in drawn if number >= 0]
            going = [number >= 0 and token not in self.ends and step + 1 < limits[number] for number, token in drawn]
            numbers = [number if goes else -1 for number, goes in zip(numbers, going, strict=True)]
            if not any(going):
                return
            with torch.inference_mode():
                history[rows, lengths + step] = chosen
                if sum(going) <= 0.75 * len(going):  # leave the finished rows behind; copying the cache at every end would cost more
                    kept = torch.tensor([row for row, goes in enumerate(going) if goes], device=device)
                    cache.select(kept)
                    history, lengths, chances, chosen = history[kept], lengths[kept], chances[kept], chosen[kept]
                    numbers, rows = [number for number in numbers if number >= 0], rows[: len(kept)]
                hidden = self.model.hidden(chosen[:, None], cache=cache)[:, -1]
            step += 1

    def _fitted(self, messages: Messages, sampling: Sampling) -> tuple[list[int], int]:
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


def _chances(prompts: list[list[int]], limits: list[int], seed: int) -> np.ndarray:
    """(rows, steps) float64 uniform numbers, for each prompt from a stream of its own."""
    import numpy as np

    chances = np.zeros((len(prompts), max(limits)))
    for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        chances[row, :limit] = generator(seed, "reply", *prompt).random(limit)
    return chances


def _role(message: Message | Mapping[str, Any]) -> str:
    return message.role if isinstance(message, Message) else message["role"]


def _content(message: Message | Mapping[str, Any]) -> str:
    return message.content if isinstance(message, Message) else message["content"]
