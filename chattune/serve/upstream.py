"""Servers of others behind ours: any that speaks OpenAI's language (vLLM, llama.cpp, Ollama, a second chattune) in place of an engine.

Keys, limits, figures and cancellation stay in front; what goes through is read piece by piece and bounded. A failure behind us is told
as 502 or 504, never as the client's mistake, and nothing that the other server says of keys or addresses is passed on.

Such a server may leave out in silence what it does not know. So a parameter beyond OpenAI's goes on only to one that is known to follow
it, and under the name that it has there; else it is refused by its name, as everywhere here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from chattune.core.artifact import check_name
from chattune.core.errors import UsageError
from chattune.serve.answering import STREAM_HEADERS, Answer, Surroundings, admitted
from chattune.serve.completions import shown
from chattune.serve.limits import Admission, Limits
from chattune.serve.wire import DONE, ChatRequest, CompletionRequest, EmbeddingRequest, WireError, encoded, sse, usage

if TYPE_CHECKING:
    from pydantic import BaseModel

CONNECT = 5.0  # seconds until the other server must have taken the connection
KEPT = 2.0  # seconds that an idle connection is kept; uvicorn and llama.cpp close theirs after 5, maybe just as it is used again
WHOLE, LINE = 64 << 20, 1 << 20  # bytes of a plain answer, and of one event of a stream
# Refusals whose words are passed on, and as what.
_PASSED = {400: 400, 404: 502, 413: 413, 415: 502, 422: 400, 429: 429, 501: 400, 503: 503}
_CODES = {"exceed_context_size_error": "context_length_exceeded", "not_supported_error": "unsupported_operation"}  # types as codes
_OPEN_END = 1024  # tokens that a reply without a limit is counted with
_BYTES_A_TOKEN = 3  # of a prompt whose tokenizer is elsewhere; an estimate for limits only

# Parameters of `wire` that OpenAI has not, with the value that changes nothing at any server (None: there is no such value).
BEYOND: dict[str, Any] = {
    "top_k": None, "min_p": None, "typical_p": None, "repetition_penalty": None, "no_repeat_ngram": 0, "min_tokens": 0, "regex": None,
}  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """How a kind of server departs from OpenAI's interface.

    `follows`: of `BEYOND`, the parameters that it follows, and how it calls them; `adds`: what else has to stand beside one of them.
    `ignores`: parameters of OpenAI's that it takes and does not follow. `seeds`: so many differ, and the next one means: at random.
    `by_stream`: it goes on with a plain answer when nobody waits for it any more, and tells the usage of one choice only; a stream it
    stops, and there each choice tells its own: so it is asked for streams alone. `has_props`: ``/props`` tells what its template takes.
    `own_logprobs`: it tells log-probabilities in one form only, that of chats, and none at all where no alternatives are asked for.
    """

    follows: Mapping[str, str]
    adds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ignores: tuple[str, ...] = ()
    seeds: int | None = None
    by_stream: bool = False
    has_props: bool = False
    own_logprobs: bool = False

    def told(self, asked: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The request `asked` as the server behind `name` understands it; a `WireError` of status 400 for what it does not follow."""
        said: dict[str, Any] = {}
        for key, value in asked.items():
            if value is None:
                continue
            if (key in BEYOND and key not in self.follows and value != BEYOND[key]) or key in self.ignores:
                raise WireError(
                    400, f"Unsupported parameter: '{key}'. The server behind '{name}' is not known to follow it.", param=key,
                    code="unsupported_parameter",
                )  # fmt: skip
            if self.own_logprobs and key in ("logprobs", "top_logprobs") and value == 0 and value is not False:
                value = 1
            if key not in BEYOND or key in self.follows:
                said |= {self.follows.get(key, key): value, **self.adds.get(key, {})}
        if self.seeds is not None and "seed" in said:
            said["seed"] %= self.seeds
        return said


_OURS = Dialect({name: name for name in BEYOND})
_DIALECTS = {  # by what stands as the owner in the list of models
    "native": _OURS, "upstream": _OURS,  # a second chattune
    "llamacpp": Dialect(
        {"top_k": "top_k", "min_p": "min_p", "typical_p": "typical_p", "repetition_penalty": "repeat_penalty"},
        # As here, all that was said counts, not the last 64 tokens.
        {key: {"repeat_last_n": 1 << 17} for key in ("repetition_penalty", "presence_penalty", "frequency_penalty")},
        ignores=("dimensions",), seeds=(1 << 32) - 1, by_stream=True, has_props=True, own_logprobs=True,
    ),
    "vllm": Dialect({name: name for name in ("top_k", "min_p", "repetition_penalty", "min_tokens")}),  # as it is documented
}  # fmt: skip
_UNKNOWN = Dialect({})


@dataclass(frozen=True)
class Behind:
    """What is known of a model at another server, so that what it would leave out in silence is refused.

    `name`: what it is called there. `vocabulary`: ids of tokens are below it; `takes_tools`: whether its template has a place for them;
    None where that server does not say.
    """

    name: str
    dialect: Dialect
    vocabulary: int | None = None
    takes_tools: bool | None = None

    def check(self, asked: Mapping[str, Any], name: str) -> None:
        """Refuse (`WireError` of status 400) what the model called `name` here cannot follow."""
        for token in asked.get("logit_bias") or ():
            if self.vocabulary is not None and int(token) >= self.vocabulary:
                raise WireError(400, f"Token id {token} does not exist.", param="logit_bias", code="invalid_value")
        offered = asked.get("tools") if asked.get("tool_choice") != "none" else None
        called = next((place for place, one in enumerate(asked.get("messages") or ()) if one.get("tool_calls")), None)
        if self.takes_tools is False and (offered or called is not None):
            param = "tools" if offered else f"messages[{called}].tool_calls"
            raise WireError(400, f"The chat template of '{name}' takes no tools.", param=param, code="unsupported_parameter")


_NAMES = ("role", "finish_reason", "index", "id", "type", "name")  # in pieces of a choice: said whole, each time


class Upstream:
    """A model at another server: `url` up to and with ``/v1``; `key`, where that server asks for one."""

    kind = "upstream"

    def __init__(self, name: str, url: str, limits: Limits, *, key: str | None = None, places: int = 64) -> None:
        parts = httpx2.URL(url)
        if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo or parts.query or parts.fragment:
            raise UsageError(
                "is not the address of a server.", path="--upstream", value=url, rule="http://HOST:PORT/v1",
                hint="Give it like --upstream other=http://127.0.0.1:8001/v1.",
            )
        self.name, self.url, self.limits = check_name(name), url.rstrip("/"), limits
        self.admission = Admission(places, limits)
        self.created = int(time.time())
        self._key, self._places = key, places
        self._client: httpx2.AsyncClient | None = None
        self._model: Behind | None = None

    def forwarded(self, around: Surroundings, path: str, asked: ChatRequest | CompletionRequest | EmbeddingRequest) -> Forwarded:
        """The answer of the other server to a request for `path`."""
        return Forwarded(around, self, path, asked)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def model(self) -> Behind:
        """The model there: that of the same name, or the only one."""
        if self._model is None:
            async with self.answering("GET", "/models", None) as response:
                data = (await _plain(response)).get("data")
            listed = {str(one.get("id")): one for one in (data if isinstance(data, list) else ()) if isinstance(one, Mapping)}
            if self.name not in listed and len(listed) != 1:
                there = ", ".join([*listed][:20]) or "none"
                raise WireError(502, f"The server behind '{self.name}' has no model of that name, but: {there}.", code="upstream_error")
            name = self.name if self.name in listed else next(iter(listed))
            dialect = _DIALECTS.get(str(listed[name].get("owned_by")), _UNKNOWN)
            known = _inner(listed[name], "meta").get("n_vocab") if dialect.has_props else None
            takes_tools = await self._takes_tools() if dialect.has_props else None
            self._model = Behind(name, dialect, _count(known) or None, takes_tools)
        return self._model

    async def _takes_tools(self) -> bool | None:
        """What llama.cpp tells of the chat template; None where it does not."""
        if not self.url.endswith("/v1"):
            return None
        async with self.answering("GET", "/props", None, base=self.url.removesuffix("/v1"), lacking=(403, 404, 501)) as response:
            found = _inner(await _plain(response), "chat_template_caps") if response.status_code == 200 else {}
        takes = found.get("supports_tools")
        return takes if isinstance(takes, bool) else None

    @contextlib.asynccontextmanager
    async def answering(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, base: str | None = None, lacking: tuple[int, ...] = ()
    ) -> AsyncIterator[httpx2.Response]:
        """A successful answer, or one of a status in `lacking`, whose body is still to be read; failures as a `WireError`."""
        if self._client is None:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = httpx2.AsyncClient(
                headers=headers, timeout=httpx2.Timeout(self.limits.request_seconds, connect=CONNECT), trust_env=False,
                follow_redirects=False, limits=httpx2.Limits(max_connections=self._places + 4, keepalive_expiry=KEPT),
            )
        content = None if body is None else encoded(body)
        sent = {"content-type": "application/json"} if body is not None else {}
        try:
            async with self._client.stream(method, (base or self.url) + path, content=content, headers=sent) as response:
                if response.status_code not in (200, *lacking):
                    raise await _refusal(response, self.name)
                yield response
        except httpx2.TimeoutException:
            raise WireError(504, f"The server behind '{self.name}' does not answer in time.", code="upstream_timeout") from None
        except httpx2.HTTPError:  # its text may hold addresses
            raise WireError(502, f"The server behind '{self.name}' cannot be reached, or broke off.", code="upstream_error") from None


class Forwarded(Answer):
    """An answer that comes from another server."""

    def __init__(self, around: Surroundings, upstream: Upstream, path: str, asked: BaseModel) -> None:
        super().__init__(around)
        self.upstream, self.path = upstream, path.removeprefix("/v1")
        self.asked: dict[str, Any] = asked.model_dump(mode="json", exclude_unset=True, by_alias=True)
        self.stream = bool(self.asked.get("stream"))
        self.wants_usage = bool((self.asked.get("stream_options") or {}).get("include_usage"))
        self.choices, self.prompts = int(self.asked.get("n") or 1), len(self.asked.get("prompt") or [None])
        self.dialect = _UNKNOWN
        self.usages: list[dict[str, Any]] = []
        self.pieces = 0  # of a stream, that say something
        self._said: dict[str, int] = {}  # characters so far, by choice

    async def _work(self) -> None:
        name, began = self.upstream.name, time.monotonic()
        async with admitted(self.around, self.upstream.admission, name, self.choices * self.prompts, self._guess()):
            behind = await self.upstream.model()
            self.dialect = behind.dialect
            behind.check(self.asked, name)
            said = self.dialect.told(self.asked | {"model": behind.name}, name)
            streams = self.stream or (self.dialect.by_stream and "input" not in said)
            if streams:
                said |= {"stream": True, "stream_options": {"include_usage": True}}
            failed = False
            try:
                async with self.upstream.answering("POST", self.path, said) as response:
                    if self.stream:
                        await self._pass_on(response, began)
                    else:
                        found = await (self._gathered(response) if streams else _plain(response))
                        self._note(found)
                        await self._json(found | {"model": name})
            except WireError:
                failed = True
                raise
            finally:
                self._account(failed)

    async def _pass_on(self, response: httpx2.Response, began: float) -> None:
        """Event by event, under our name for the model; the usage comes last, for a client who asked for it."""
        await self._start(200, STREAM_HEADERS)
        last: dict[str, Any] | None = None
        async for chunk in self._chunks(response):
            if last is None:
                self.around.metrics.first.labels(self.upstream.name).observe(time.monotonic() - began)
            last = chunk | {"model": self.upstream.name}
            await self._piece(sse(last))
        if self.wants_usage and self.usages:
            await self._piece(sse((last or {}) | {"choices": [], "usage": self._usage()}))
        await self._piece(DONE, last=True)

    async def _gathered(self, response: httpx2.Response) -> dict[str, Any]:
        """A plain answer out of a stream."""
        found: dict[str, Any] = {}
        choices: dict[str, dict[str, Any]] = {}
        async for chunk in self._chunks(response):
            found = chunk | {"object": str(chunk.get("object") or "").removesuffix(".chunk")}
            for choice in chunk["choices"]:
                if isinstance(choice, dict):
                    _add(choices.setdefault(json.dumps(choice.get("index")), {}), choice)
        in_order = [choices[index] for index in sorted(choices, key=lambda index: (len(index), index))]  # they are numbers as texts
        return found | {"choices": [_whole(choice) for choice in in_order]} | ({"usage": self._usage()} if self.usages else {})

    async def _chunks(self, response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
        """The chunks that hold choices, as OpenAI would send them; their usage is noted. Raises where the end does not come."""
        begun, size = set[str](), 0  # choices of which something came; bytes of an answer that is gathered
        async for event in _events(response):
            if event == b"[DONE]":
                return
            if event == b"null":  # from llama.cpp, of a choice that has no whole character yet
                continue
            size += 0 if self.stream else len(event)
            if size > WHOLE:
                raise WireError(502, "The server behind says too much.", code="upstream_error")
            chunk = _object(event)
            if "error" in chunk:
                raise WireError(502, f"The server behind '{self.upstream.name}' failed while it answered.", code="upstream_error")
            self._note(chunk)
            chunk.pop("usage", None)
            if isinstance(chunk.get("choices"), list) and chunk["choices"]:
                self.pieces += _with_roles(chunk, begun)
                if self.dialect.own_logprobs:
                    self._tell_logprobs(chunk["choices"])
                yield chunk
        raise WireError(502, f"The server behind '{self.upstream.name}' broke off.", code="upstream_error")

    def _tell_logprobs(self, choices: list[Any]) -> None:
        """In OpenAI's form, of texts the older one, with as many alternatives as were asked for."""
        texts = self.path == "/completions"
        most = int((self.asked.get("logprobs") if texts else self.asked.get("top_logprobs")) or 0)
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index = json.dumps(choice.get("index"))
            offset = self._said.get(index, 0)
            self._said[index] = offset + len(str(choice.get("text") or ""))
            told = choice.get("logprobs")
            if not isinstance(told, dict) or not isinstance(told.get("content"), list):
                continue
            entries = [one | {"top_logprobs": _dicts(one.get("top_logprobs"))[:most]} for one in _dicts(told["content"])]
            choice["logprobs"] = _older(entries, most, offset) if texts else told | {"content": entries}

    def _guess(self) -> int:
        """Tokens of the request and its answer, as far as can be known from here."""
        limit = self.asked.get("max_completion_tokens") or self.asked.get("max_tokens") or _OPEN_END
        return self._read() + (0 if "input" in self.asked else limit * self.choices * self.prompts)

    def _read(self) -> int:
        """Tokens of the prompt, by its length."""
        said = self.asked.get("messages") or self.asked.get("prompt") or self.asked.get("input")
        return math.ceil(len(encoded(said)) / _BYTES_A_TOKEN)

    def _note(self, found: Mapping[str, Any]) -> None:
        if isinstance(found.get("usage"), dict):
            self.usages.append(found["usage"])

    def _usage(self) -> dict[str, Any]:
        """The usage of all choices, told once, or by each of them."""
        if len(self.usages) == 1 or not self.dialect.by_stream:
            return self.usages[-1]
        prompt, completion = (sum(_count(one.get(name)) for one in self.usages) for name in ("prompt_tokens", "completion_tokens"))
        return usage(prompt // self.choices, completion)  # every choice tells its prompt once more

    def _account(self, failed: bool) -> None:
        """What was used. Of an answer that was cut off there is no usage: a piece is at least a token. What fails costs nothing."""
        if self.usages:
            prompt, completion = (_count(self._usage().get(name)) for name in ("prompt_tokens", "completion_tokens"))
        else:
            prompt, completion = (0, 0) if failed else (self._read(), self.pieces)
        tokens = self.around.metrics.tokens
        tokens.labels(self.upstream.name, "prompt").inc(prompt)
        tokens.labels(self.upstream.name, "completion").inc(completion)
        self.around.facts["used"]["tokens"] = prompt + completion
        self.around.facts |= {"prompt_tokens": prompt, "completion_tokens": completion}


def key_from(place: str) -> str:
    """The key that ``env:NAME`` or ``file:PATH`` holds, so that it stands neither in a command nor in a list of processes."""
    kind, _, where = place.partition(":")
    try:
        found = os.environ[where] if kind == "env" else Path(where).read_text("utf-8") if kind == "file" else ""
    except (KeyError, OSError, UnicodeDecodeError):
        found = ""
    if not found.strip() or not found.strip().isascii():
        raise UsageError(
            f"there is no key in '{place}'.", path="--upstream-key", value=place, rule="env:NAME or file:PATH",
            hint="Give it like --upstream-key other=env:OTHER_KEY.",
        )
    return found.strip()


async def _plain(response: httpx2.Response) -> dict[str, Any]:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > WHOLE:
            raise WireError(502, "The server behind says too much.", code="upstream_error")
    return await asyncio.to_thread(_object, bytes(body))


async def _events(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The data of each event; what is not data is left out."""
    held = b""
    async for piece in response.aiter_bytes():
        *lines, held = (held + piece).split(b"\n")
        if len(held) > LINE:
            raise WireError(502, "The server behind says too much at once.", code="upstream_error")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _with_roles(chunk: Mapping[str, Any], begun: set[str]) -> int:
    """Let the first delta of each choice name its role, as OpenAI's does; the number of choices that say something."""
    speaking = 0
    for choice in chunk["choices"]:
        if not isinstance(choice, dict):
            continue
        delta, index = choice.get("delta"), json.dumps(choice.get("index"))
        if isinstance(delta, dict):
            speaking += any(value for name, value in delta.items() if name != "role")
            if index not in begun:
                delta.setdefault("role", "assistant")
        else:
            speaking += bool(choice.get("text"))
        begun.add(index)
    return speaking


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _older(entries: list[dict[str, Any]], most: int, offset: int) -> dict[str, Any]:
    """Log-probabilities as four lists side by side; `offset`: where their text begins."""
    found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in entries:
        found["tokens"].append(_token(one))
        found["token_logprobs"].append(one.get("logprob"))
        found["top_logprobs"].append({_token(top): top.get("logprob") for top in one["top_logprobs"]} if most else None)
        found["text_offset"].append(offset)
        offset += len(str(one.get("token") or ""))
    return found


def _token(entry: Mapping[str, Any]) -> str:
    try:
        return shown(bytes(entry["bytes"]))
    except (KeyError, TypeError, ValueError):
        return str(entry.get("token"))


def _add(whole: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Put a piece of a choice to what came of it before: texts and lists go on, calls of tools each by its index."""
    for name, value in piece.items():
        before = whole.get(name)
        if value is None or before is None or name in _NAMES:
            whole[name] = before if value is None else value
        elif isinstance(before, str) and isinstance(value, str):
            whole[name] = before + value
        elif isinstance(before, dict) and isinstance(value, dict):
            _add(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            for item in value:
                index = item.get("index") if isinstance(item, dict) else None  # alternatives may have a token of that name
                same = next((one for one in _dicts(before) if isinstance(index, int) and one.get("index") == index), None)
                before.append(item) if same is None else _add(same, item)
        else:
            whole[name] = value


def _whole(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice that was put together, in the form of a plain answer."""
    delta = choice.pop("delta", None)
    if not isinstance(delta, dict):
        return choice
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict):
            call.pop("index", None)
    content = delta.get("content")
    return choice | {"message": {"role": "assistant", **delta, "content": "" if content is None and not calls else content}}


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WireError(502, "The server behind does not answer in OpenAI's form.", code="upstream_error")
    return found


async def _refusal(response: httpx2.Response, name: str) -> WireError:
    """What a status other than 200 means for our client."""
    status = response.status_code
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > LINE:
            break
    with contextlib.suppress(ValueError, RecursionError):
        error = json.loads(bytes(body))
        error = error.get("error") if isinstance(error, dict) else None
        if isinstance(error, dict) and status in _PASSED:
            said = {key: error[key] if isinstance(error.get(key), str) else None for key in ("message", "param", "code", "type")}
            after = response.headers.get("retry-after", "")
            return WireError(
                _PASSED[status], (said["message"] or f"The server behind '{name}' refuses the request.")[:1000], param=said["param"],
                code=said["code"] or _CODES.get(said["type"] or ""), kind=said["type"],
                retry_after=int(after) if after.isascii() and after.isdigit() and len(after) < 6 else None,
            )  # fmt: skip
    if status in (429, 503):
        return WireError(status, f"The server behind '{name}' is busy.", code="upstream_busy", retry_after=1)
    return WireError(502, f"The server behind '{name}' answers with status {status}.", code="upstream_error")


def _inner(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What stands there under `name`; nothing where that is no object."""
    value = found.get(name)
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else 0
