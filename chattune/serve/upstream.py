"""Servers of others behind ours: any that speaks OpenAI's language (vLLM, llama.cpp, Ollama, a second chattune) in place of an engine.

Keys, limits, figures and cancellation stay in front; what goes through is read piece by piece and bounded. A failure behind us is told
as 502 or 504, never as the client's mistake, and nothing that the other server says of keys or addresses is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from chattune.core.artifact import check_name
from chattune.core.errors import UsageError
from chattune.serve.answering import STREAM_HEADERS, Answer, Surroundings, admitted
from chattune.serve.limits import Admission, Limits
from chattune.serve.wire import DONE, ChatRequest, CompletionRequest, EmbeddingRequest, WireError, encoded, sse

if TYPE_CHECKING:
    from pydantic import BaseModel

CONNECT = 5.0  # seconds until the other server must have taken the connection
WHOLE, LINE = 64 << 20, 1 << 20  # bytes of a plain answer, and of one event of a stream
_PASSED = {400: 400, 404: 502, 413: 413, 415: 502, 422: 400, 429: 429, 503: 503}  # refusals whose words are passed on, and as what
_OPEN_END = 1024  # tokens that a reply without a limit is counted with
_BYTES_A_TOKEN = 3  # of a prompt whose tokenizer is elsewhere; an estimate for limits only


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
        self._model: str | None = None

    def forwarded(self, around: Surroundings, path: str, asked: ChatRequest | CompletionRequest | EmbeddingRequest) -> Forwarded:
        """The answer of the other server to a request for `path`."""
        return Forwarded(around, self, path, asked)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def model(self) -> str:
        """What the model is called there: as here, or, where it is the only one, by its own name."""
        if self._model is None:
            async with self.answering("GET", "/models", None) as response:
                listed = await _plain(response)
            names = [str(one.get("id")) for one in listed.get("data") or [] if isinstance(one, Mapping)]
            if self.name not in names and len(names) != 1:
                there = ", ".join(names[:20]) or "none"
                raise WireError(502, f"The server behind '{self.name}' has no model of that name, but: {there}.", code="upstream_error")
            self._model = self.name if self.name in names else names[0]
        return self._model

    @contextlib.asynccontextmanager
    async def answering(self, method: str, path: str, body: Mapping[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        """A successful answer whose body is still to be read; failures as a `WireError`."""
        if self._client is None:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = httpx2.AsyncClient(
                headers=headers, timeout=httpx2.Timeout(self.limits.request_seconds, connect=CONNECT), trust_env=False,
                follow_redirects=False, limits=httpx2.Limits(max_connections=self._places + 4),
            )
        content = None if body is None else encoded(body)
        sent = {"content-type": "application/json"} if body is not None else {}
        try:
            async with self._client.stream(method, self.url + path, content=content, headers=sent) as response:
                if response.status_code != 200:
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
        self.usage: dict[str, Any] = {}

    async def _work(self) -> None:
        name, began = self.upstream.name, time.monotonic()
        async with admitted(self.around, self.upstream.admission, name, int(self.asked.get("n") or 1), self._guess()):
            self.asked["model"] = await self.upstream.model()
            if self.stream:
                self.asked["stream_options"] = {"include_usage": True}
            try:
                async with self.upstream.answering("POST", self.path, self.asked) as response:
                    if self.stream:
                        await self._pass_on(response, began)
                    else:
                        found = await _plain(response)
                        self.usage = found.get("usage") or {}
                        await self._json(found | {"model": name})
            finally:
                self._account()

    async def _pass_on(self, response: httpx2.Response, began: float) -> None:
        """Event by event, under our name for the model; the usage is for us, and for a client who asked for it."""
        await self._start(200, STREAM_HEADERS)
        first = True
        async for event in _events(response):
            if event == b"[DONE]":
                await self._piece(DONE, last=True)
                return
            chunk = _object(event)
            if "error" in chunk:
                raise WireError(502, f"The server behind '{self.upstream.name}' failed while it answered.", code="upstream_error")
            self.usage = chunk.get("usage") or self.usage
            if not self.wants_usage:
                chunk.pop("usage", None)
                if not chunk.get("choices"):
                    continue
            if first:
                self.around.metrics.first.labels(self.upstream.name).observe(time.monotonic() - began)
                first = False
            await self._piece(sse(chunk | {"model": self.upstream.name}))
        raise WireError(502, f"The server behind '{self.upstream.name}' broke off.", code="upstream_error")

    def _guess(self) -> int:
        """Tokens of the request and its answer, as far as can be known from here."""
        limit = self.asked.get("max_completion_tokens") or self.asked.get("max_tokens") or _OPEN_END
        said = self.asked.get("messages") or self.asked.get("prompt") or self.asked.get("input")
        more = 0 if "input" in self.asked else limit * int(self.asked.get("n") or 1)
        return math.ceil(len(encoded(said)) / _BYTES_A_TOKEN) + more

    def _account(self) -> None:
        prompt, completion = (_count(self.usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
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
                code=said["code"], kind=said["type"],
                retry_after=int(after) if after.isascii() and after.isdigit() and len(after) < 6 else None,
            )  # fmt: skip
    if status in (429, 503):
        return WireError(status, f"The server behind '{name}' is busy.", code="upstream_busy", retry_after=1)
    return WireError(502, f"The server behind '{name}' answers with status {status}.", code="upstream_error")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else 0
