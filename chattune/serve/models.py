"""The models that are served: each with its engine, its door and its name; loaded and unloaded while the others answer."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from chattune.core.errors import ArtifactError, ChattuneError, UnknownName, UsageError
from chattune.dialogs.dialog import Message
from chattune.serve.completions import ChatForm, Form, TextForm
from chattune.serve.limits import Admission, Limits
from chattune.serve.tools import as_content, offered, required
from chattune.serve.wire import ChatRequest, CompletionRequest, EmbeddingRequest, Generation, WireError
from chattune.serve.wire import Message as SaidMessage

if TYPE_CHECKING:
    from chattune.generate.engine import Ask, EngineLoad, Ticket
    from chattune.generate.reply import ChatModel, ReplyEvent, Sampling
    from chattune.tokens.template import Template

OPEN_END = 1024  # tokens that a reply without a limit is counted with before it is there
# What a request calls by OpenAI's names or ours, and `Sampling` by the same.
SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "no_repeat_ngram", "logit_bias", "min_tokens",
)  # fmt: skip


class Decoder(Protocol):
    """What the server needs of an engine; see `chattune.generate.engine.Engine`."""

    def submit(self, ask: Ask, deliver: Callable[[ReplyEvent], None]) -> Ticket: ...
    def cancel(self, ticket: Ticket) -> None: ...
    def start(self) -> None: ...
    def close(self) -> None: ...
    def load(self) -> EngineLoad: ...


@dataclass(frozen=True)
class Prepared:
    """A request in the model's own terms: what to ask the engine, one for each choice, and the form of the answer.

    `tokens`: at most so many in all, as far as is known, prompts and replies.
    """

    asks: tuple[Ask, ...]
    prompt_tokens: int
    tokens: int
    form: Form


class NativeModel:
    """A chat model of ours with its engine. `slots`: replies side by side; one more request per four slots stands ready behind them."""

    kind = "native"

    def __init__(self, name: str, chat: ChatModel, engine: Decoder, *, slots: int, limits: Limits, context: int | None = None) -> None:
        self.name, self.chat, self.engine, self.slots = name, chat, engine, slots
        self.context = context or chat.context
        self.admission = Admission(slots + math.ceil(slots / 4), limits)
        self.embedding = Admission(1, limits)
        self.created = int(time.time())

    def prepare(self, request: ChatRequest | CompletionRequest, owner: str = "") -> Prepared:
        """Tokenise and check all that can be known before it is queued; takes time: not for the event loop. `owner`: who asks.

        Raises `WireError` of status 400 for what the model cannot take, the numbers said.
        """
        from chattune.generate.engine import Ask

        prompts = self._prompts(request)
        for place, prompt in enumerate(prompts):
            self._check_fit(prompt, request, place if len(prompts) > 1 else None)
        count, limit = request.n or 1, request.limit
        sampling = [self._sampling(request, limit or self.context - len(prompt)) for prompt in prompts]
        logprobs = _logprobs(request)
        asks = tuple(
            Ask(tuple(prompt), how, number, logprobs, owner)
            for prompt, how in zip(prompts, sampling, strict=True)
            for number in range(count)
        )
        ahead = [limit or min(OPEN_END, self.context - len(prompt)) for prompt in prompts]
        tokens = sum(count * (len(prompt) + more) for prompt, more in zip(prompts, ahead, strict=True))
        kind = ChatForm if isinstance(request, ChatRequest) else TextForm
        with_usage = bool(request.stream_options and request.stream_options.include_usage)
        form = kind(self.name, self.chat.tokenizer.pieces, logprobs, with_usage)
        if isinstance(form, ChatForm) and isinstance(request, ChatRequest):
            form.functions = [tool["function"]["name"] for tool in offered(request)]
        return Prepared(asks, sum(map(len, prompts)), tokens, form)

    def embed(self, request: EmbeddingRequest) -> tuple[list[list[float]], int]:
        """A vector of length 1 for each input, the mean of the last hidden states over its tokens, and the tokens read; takes time."""
        import torch

        prompts = [self._text(item) if isinstance(item, str) else self._ids(item, "input") for item in request.input]
        for place, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.context:
                raise WireError(
                    400, f"Input {place} has {len(prompt)} tokens; this model reads 1 to {self.context}.", param="input",
                    code="context_length_exceeded",
                )  # fmt: skip
        vectors = []
        with torch.inference_mode():
            for prompt in prompts:
                hidden = self.chat.model.hidden(torch.tensor([prompt], device=self.chat.model.device))[0].float().mean(0)
                width = hidden.shape[0]
                if request.dimensions is not None and request.dimensions > width:
                    raise WireError(400, f"Invalid 'dimensions': this model has {width}.", param="dimensions", code="invalid_value")
                vectors.append(torch.nn.functional.normalize(hidden[: request.dimensions], dim=0).tolist())
        return vectors, sum(map(len, prompts))

    def _prompts(self, request: ChatRequest | CompletionRequest) -> list[list[int]]:
        if isinstance(request, ChatRequest):
            return [self._chat(request)]
        return [self._text(item) if isinstance(item, str) else self._ids(item, "prompt") for item in request.prompt]

    def _chat(self, request: ChatRequest) -> list[int]:
        template, tools = self.chat.template, offered(request)
        for place, message in enumerate(request.messages):
            if (tools or message.tool_calls) and not template.takes_tools:
                param = "tools" if tools else f"messages[{place}].tool_calls"
                raise WireError(400, f"The chat template of '{self.name}' takes no tools.", param=param, code="unsupported_parameter")
        messages = [Message(message.speaker, _content(message, template)) for message in request.messages]
        try:
            return template.prompt(messages, tools)
        except ArtifactError as error:  # the template itself is at fault, not who asked
            raise WireError(500, f"The chat template of this model does not work: {error.message}", code="template_error") from None
        except ChattuneError as error:
            said = f"The messages cannot be rendered: {error.message}"
            raise WireError(400, said, param="tools" if error.path == "tools" else "messages", code="invalid_value") from None

    def _text(self, text: str) -> list[int]:
        begin = self.chat.tokenizer.control.get("begin")
        (ids,) = self.chat.tokenizer.encode_many([text])
        return ids if begin is None else [begin, *ids]

    def _ids(self, ids: Sequence[int], param: str) -> list[int]:
        largest = self.chat.tokenizer.vocabulary
        if max(ids) >= largest:
            raise WireError(400, f"Token id {max(ids)} does not exist: there are {largest}.", param=param, code="invalid_value")
        return list(ids)

    def _check_fit(self, prompt: Sequence[int], request: Generation, place: int | None) -> None:
        param = "messages" if isinstance(request, ChatRequest) else "prompt" if place is None else f"prompt[{place}]"
        if not prompt:
            raise WireError(400, "The prompt has no tokens.", param=param, code="invalid_value")
        wanted = request.limit or 1
        if len(prompt) + wanted > self.context:
            raise WireError(
                400, f"This model's context holds {self.context} tokens; the prompt has {len(prompt)} and the reply asks for {wanted}.",
                param=param, code="context_length_exceeded",
            )  # fmt: skip

    def _sampling(self, request: Generation, limit: int) -> Sampling:
        asked: dict[str, Any] = {name: getattr(request, name) for name in SAMPLING if getattr(request, name) is not None}
        if asked.get("top_p") == 0:
            asked["top_p"] = 1e-9  # OpenAI allows 0: the likeliest token alone
        beyond = [token for token in asked.get("logit_bias") or () if token >= self.chat.tokenizer.vocabulary]
        if beyond:
            raise WireError(400, f"Token id {beyond[0]} does not exist.", param="logit_bias", code="invalid_value")
        asked["seed"] = request.seed if request.seed is not None else secrets.randbits(62)
        asked["max_tokens"] = limit
        if asked.get("min_tokens", 0) > limit:
            raise WireError(400, f"Invalid 'min_tokens': the reply ends after {limit}.", param="min_tokens", code="invalid_value")
        if request.stop:
            asked["stop"] = tuple(request.stop)
        grammar = _grammar(request)
        if grammar is not None:
            asked["grammar"] = grammar
        try:
            return self.chat.sampled(asked)
        except UsageError as error:
            raise WireError(400, f"Invalid '{error.path}': {error.message}", param=error.path, code="invalid_value") from None


class Arriving:
    """Events of all choices of one request, handed over from the engine's thread to the event loop."""

    def __init__(self, engine: Decoder, asks: Sequence[Ask]) -> None:
        self._engine, self._asks, self._loop = engine, asks, asyncio.get_running_loop()
        self._found: deque[tuple[int, ReplyEvent]] = deque()
        self._more = asyncio.Event()
        self._tickets: list[Ticket] = []
        self._unwanted = False
        self.left = len(asks)

    async def begin(self) -> None:
        """Hand the request to the engine; what it refuses is a `WireError` of status 400."""
        try:
            for index, ask in enumerate(self._asks):
                if ask.sampling.grammar is None:
                    self._tickets.append(self._engine.submit(ask, self._receiver(index)))
                else:  # a grammar is compiled first, which takes time
                    submitting = asyncio.ensure_future(asyncio.to_thread(self._engine.submit, ask, self._receiver(index)))
                    submitting.add_done_callback(self._submitted)
                    await asyncio.shield(submitting)
        except UsageError as error:
            raise WireError(400, error.message, param=_param(error.path), code="invalid_value") from None

    async def batch(self) -> list[tuple[int, ReplyEvent]]:
        """(choice, event) as they came since the last call; at least one."""
        while not self._found:
            self._more.clear()
            if self._found:
                break
            await self._more.wait()
        found = []
        while self._found:
            found.append(self._found.popleft())
        self.left -= sum(event.finish_reason is not None for _, event in found)
        return found

    def cancel(self) -> None:
        """Let the engine stop whatever is not finished. Nothing is held any longer that leads back here."""
        self._unwanted = True
        while self._tickets:
            self._engine.cancel(self._tickets.pop())

    def _submitted(self, submitting: asyncio.Future[Ticket]) -> None:
        if not submitting.cancelled() and submitting.exception() is None:
            self._tickets.append(submitting.result())
            if self._unwanted:  # nobody waits any more
                self.cancel()

    def _receiver(self, index: int) -> Callable[[ReplyEvent], None]:
        def receive(event: ReplyEvent) -> None:
            self._found.append((index, event))
            try:
                self._loop.call_soon_threadsafe(self._more.set)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        return receive


class Shelf:
    """The models by name. `bring` makes one of a run; it takes time and is called in a thread."""

    def __init__(self, bring: Callable[[str], NativeModel] | None = None) -> None:
        self._bring, self._models = bring, dict[str, Any]()
        self._loading: set[str] = set()

    def put(self, model: Any) -> None:
        if model.name in self._models:
            raise UsageError(f"two models are called '{model.name}'.", value=model.name, rule="each name once")
        self._models[model.name] = model

    def get(self, name: str) -> Any:
        """The model of that name, or a `WireError` of status 404 that says which there are."""
        found = self._models.get(name)
        if found is None:
            there = ", ".join(f"'{other}'" for other in self._models) or "none"
            said = f"The model '{name[:200]}' does not exist here. There are: {there}."
            raise WireError(404, said, param="model", code="model_not_found")
        return found

    def all(self) -> Mapping[str, Any]:
        return self._models

    async def load(self, name: str) -> Any:
        """Load a run under its name; status 404 where there is none, 409 where it is there or on its way."""
        if name in self._models or name in self._loading:
            raise WireError(409, f"The model '{name}' is loaded or being loaded.", param="model", code="model_loaded")
        if self._bring is None:
            raise WireError(400, "This server loads no further models.", code="unsupported_operation")
        self._loading.add(name)
        try:
            model = await asyncio.to_thread(self._bring, name)
        except UnknownName as error:
            raise WireError(404, f"{error}", param="model", code="model_not_found") from None
        except ChattuneError as error:
            raise WireError(400, f"{error}", param="model", code="model_not_loaded") from None
        finally:
            self._loading.discard(name)
        self._models[name] = model
        model.engine.start()
        return model

    async def unload(self, name: str, seconds: float) -> None:
        """Take the model away from new requests at once, and end it when those that run are done, after `seconds` at the latest."""
        model = self.get(name)
        if model.kind != "native":
            raise WireError(400, f"'{name}' is another server's.", param="model", code="unsupported_operation")
        del self._models[name]
        end = time.monotonic() + seconds
        while (model.admission.used or model.admission.waiting or model.embedding.used) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(model.engine.close)

    async def close(self) -> None:
        """End all models, side by side: each engine after the step that it is at."""
        models = self._models.values()
        await asyncio.gather(*(asyncio.to_thread(model.engine.close) if model.kind == "native" else model.close() for model in models))


def _logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs


def _grammar(request: Generation) -> dict[str, Any] | None:
    call = required(request) if isinstance(request, ChatRequest) else None
    wanted = request.response_format if request.response_format is not None and request.response_format.type != "text" else None
    if call is not None and (wanted is not None or request.regex is not None):
        raise WireError(400, "A required call leaves no room for another form of the reply.", param="tool_choice", code="invalid_value")
    if call is not None:
        return {"json_schema": call}
    if request.regex is not None:
        return {"regex": request.regex}
    if wanted is None:
        return None
    return {"json_schema": wanted.json_schema.schema_} if wanted.json_schema else {"json_object": True}


def _content(message: SaidMessage, template: Template) -> str:
    if message.tool_calls:
        return as_content(message.content, message.tool_calls, "<tool_call>" in getattr(template, "text", ""))
    return message.content or ""


def _param(path: str | None) -> str | None:
    return {"grammar": "response_format", "prompt": "messages"}.get(path or "", path)
