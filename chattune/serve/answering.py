"""From admission to the last byte: an answer that waits for its place, is decoded, sent, and stopped when nobody reads it any more."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from chattune.serve.completions import Choice
from chattune.serve.limits import Admission, Limits, Place, TokenBucket
from chattune.serve.metrics import Metrics
from chattune.serve.models import Arriving, NativeModel, Prepared
from chattune.serve.wire import DONE, WireError, encoded, sse

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from chattune.serve.keys import Key

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"),
]  # fmt: skip
JSON_HEADERS = [(b"content-type", b"application/json")]


class Drain:
    """Whether the server is about to end: new requests are refused, and at its limit the running ones are cut.

    `works`: of each request that came before, the task that is at it: the request's own while it is read, then that of its answer.
    """

    def __init__(self) -> None:
        self.begun, self.cutting = False, False
        self.works: set[asyncio.Task[Any]] = set()
        self._limit = math.inf

    def begin(self, seconds: float) -> None:
        """The server is about to end; what runs may take so many `seconds`."""
        self.begun, self._limit = True, time.monotonic() + seconds

    def left(self, after: float = 0.0) -> float | None:
        """Seconds until `after` the limit, 0 when that is past; None where no end is in sight."""
        return max(0.0, self._limit + after - time.monotonic()) if self.begun else None

    def refuse(self, seconds: float) -> None:
        """A `WireError` of status 503 where the server is about to end."""
        if self.begun:
            raise shutting_down(max(1, math.ceil(seconds)))

    def cut(self) -> None:
        """End what still runs; each client is told."""
        self.cutting = True
        for work in self.works:
            work.cancel()


def shutting_down(retry_after: int = 1) -> WireError:
    """What a client is told whom the end of the server refuses, or cuts."""
    return WireError(503, "The server is shutting down.", code="shutting_down", retry_after=retry_after, kind="server_error")


@dataclass
class Allowance:
    """What a key may use a minute."""

    requests: TokenBucket | None = None
    tokens: TokenBucket | None = None

    @classmethod
    def of(cls, key: Key) -> Allowance:
        return cls(TokenBucket(key.requests) if key.requests else None, TokenBucket(key.tokens) if key.tokens else None)

    def take_request(self) -> None:
        if self.requests is not None:
            wait = self.requests.take(1)
            if wait:
                raise _limited("requests", self.requests.per_minute, wait)

    def take_tokens(self, tokens: int) -> None:
        if self.tokens is not None:
            wait = self.tokens.take(tokens)
            if math.isinf(wait):
                raise WireError(
                    400, f"This request may use {tokens} tokens; the key may use {self.tokens.per_minute} a minute.",
                    param="max_tokens", code="tokens_exceed_limit",
                )  # fmt: skip
            if wait:
                raise _limited("tokens", self.tokens.per_minute, wait)

    def settle(self, reserved: int, used: int) -> None:
        """Give back what was reserved and not used."""
        if self.tokens is not None:
            self.tokens.put_back(reserved - used)


def _limited(what: str, per_minute: int, wait: float) -> WireError:
    return WireError(
        429, f"The key's limit of {per_minute} {what} a minute is reached.", kind=what, code="rate_limit_exceeded",
        retry_after=max(1, math.ceil(wait)),
    )  # fmt: skip


@dataclass
class Surroundings:
    """What every answer needs of the server, and what it leaves for the access log (`facts`)."""

    limits: Limits
    metrics: Metrics
    drain: Drain
    owner: str
    allowance: Allowance
    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def admitted(around: Surroundings, admission: Admission, model: str, places: int, tokens: int) -> AsyncIterator[Place]:
    """A place at the model and the key's tokens for it; both are given back at the end."""
    around.allowance.take_tokens(tokens)
    used = around.facts.setdefault("used", {"tokens": 0})
    began = time.monotonic()
    try:
        place = await admission.enter(around.owner, places, tokens)
        waited = time.monotonic() - began
        around.metrics.queue.labels(model).observe(waited)
        around.facts["queue_ms"] = round(waited * 1000, 1)
        try:
            yield place
        finally:
            admission.leave(place)
    finally:
        around.allowance.settle(tokens, used["tokens"])


class Answer(Response):
    """An answer made in one task that ends when the client goes away. Subclasses write `_work`.

    Errors before the first byte become an answer of their own; later ones an event of the stream.
    """

    def __init__(self, around: Surroundings) -> None:
        super().__init__()
        self.around = around
        self._send: Send
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        work = asyncio.create_task(self._guarded())
        gone = asyncio.create_task(_gone(receive))
        works = self.around.drain.works
        works.add(work)
        works.difference_update({asyncio.current_task()})  # the request is read: its answer is what is at work now
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.around.facts["cut"] = "disconnect"
                self.around.metrics.cut.labels("disconnect").inc()
        finally:
            works.discard(work)
            for task in (work, gone):
                if not task.done():
                    task.cancel()
            await asyncio.wait({work, gone})
        if not work.cancelled():
            work.result()
        held = scope.get("state", {}).get("connection")
        if self.around.facts.get("cut") == "stalled" and held is not None and (connection := held()) is not None:
            connection.abort()  # closing would wait for a reader who does not read

    async def _guarded(self) -> None:
        try:
            async with asyncio.timeout(self.around.limits.request_seconds + self.around.limits.queue_seconds):
                await self._work()
        except TimeoutError:
            await self._broken(WireError(504, "The request took too long.", code="timeout", kind="timeout"), "timeout")
        except WireError as error:
            await self._broken(error, "error")
        except asyncio.CancelledError:
            if not self.around.drain.cutting:
                raise
            await self._broken(shutting_down(), "shutdown")
        except _Stalled:
            self.around.facts["cut"] = "stalled"
            self.around.metrics.cut.labels("stalled").inc()

    async def _work(self) -> None:
        raise NotImplementedError

    async def _broken(self, error: WireError, reason: str) -> None:
        """Tell the client, in whatever way is left."""
        if not self._started:
            raise error
        self.around.facts["cut"] = reason
        self.around.metrics.cut.labels(reason).inc()
        with contextlib.suppress(_Stalled):
            await self._piece(sse(error.body()), last=True)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        await self._out({"type": "http.response.start", "status": status, "headers": headers})

    async def _piece(self, body: bytes, last: bool = False) -> None:
        await self._out({"type": "http.response.body", "body": body, "more_body": not last})

    async def _out(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self.around.limits.stall_seconds):
                await self._send(message)
        except TimeoutError:
            raise _Stalled from None

    async def _json(self, data: Any) -> None:
        body = encoded(data)
        await self._start(200, [*JSON_HEADERS, (b"content-length", str(len(body)).encode())])
        await self._piece(body, last=True)


class Generated(Answer):
    """The answer of a model of ours, plain or streamed."""

    def __init__(self, around: Surroundings, model: NativeModel, prepared: Prepared, stream: bool) -> None:
        super().__init__(around)
        self.model, self.prepared, self.stream = model, prepared, stream
        self.choices = [Choice() for _ in prepared.asks]

    async def _work(self) -> None:
        around, name = self.around, self.model.name
        count = len(self.prepared.asks)
        async with admitted(around, self.model.admission, name, count, self.prepared.tokens):
            began, first = time.monotonic(), 0.0
            arriving = Arriving(self.model.engine, self.prepared.asks)
            try:
                await arriving.begin()
                if self.stream:
                    await self._open()
                while arriving.left:
                    found = await arriving.batch()
                    first = first or time.monotonic()
                    await self._take(found)
                await self._close()
            finally:
                arriving.cancel()
                self._account(began, first)

    async def _open(self) -> None:
        await self._start(200, STREAM_HEADERS)
        opening = b"".join(map(sse, self.prepared.form.opening(len(self.choices))))
        if opening:
            await self._piece(opening)

    async def _take(self, found: list[tuple[int, Any]]) -> None:
        """Add events to their choices, and send what they say."""
        said = []
        for index, event in found:
            if event.finish_reason == "error":
                raise WireError(500, "The model failed while it answered.", code="engine_error")
            if event.finish_reason == "cancelled":
                raise WireError(503, "The model is being unloaded.", code="model_unloaded", retry_after=1)
            choice = self.choices[index]
            if self.stream:
                chunk = self.prepared.form.chunk(index, event, choice)
                if chunk is not None:
                    said.append(sse(chunk))
            choice.add(event)
        if said:
            await self._piece(b"".join(said))

    async def _close(self) -> None:
        form, prompt = self.prepared.form, self.prepared.prompt_tokens
        if self.stream:
            await self._piece(b"".join(map(sse, form.closing(self.choices, prompt))) + DONE, last=True)
        else:
            await self._json(form.whole(self.choices, prompt))

    def _account(self, began: float, first: float) -> None:
        generated = sum(choice.tokens for choice in self.choices)
        prompt, name, metrics = self.prepared.prompt_tokens, self.model.name, self.around.metrics
        metrics.tokens.labels(name, "prompt").inc(prompt)
        metrics.tokens.labels(name, "completion").inc(generated)
        self.around.facts["used"]["tokens"] = prompt + generated
        self.around.facts |= {"prompt_tokens": prompt, "completion_tokens": generated}
        if first:
            now, longest = time.monotonic(), max(choice.tokens for choice in self.choices)
            metrics.first.labels(name).observe(first - began)
            if longest > 1:
                metrics.between.labels(name).observe((now - first) / (longest - 1))


class Whole(Answer):
    """An answer that a coroutine computes and that is sent in one piece."""

    def __init__(self, around: Surroundings, compute: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        super().__init__(around)
        self._compute = compute

    async def _work(self) -> None:
        await self._json(await self._compute())


class _Stalled(Exception):
    """The client takes nothing."""


async def _gone(receive: Receive) -> None:
    """Return when the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass
