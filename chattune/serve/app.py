"""The application: routes, who may take them, and what every answer has in common.

`Front` stands before all: it names each request, refuses foreign hosts and origins, counts, logs, and turns whatever escapes into an
error of OpenAI's shape. Behind it the routes do no work of their own: they read, check, and hand over to `answering`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import logging
import secrets
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException

import chattune
from chattune.core.artifact import check_name
from chattune.core.errors import UsageError
from chattune.serve import wire
from chattune.serve.answering import Allowance, Answer, Drain, Generated, Surroundings, Whole, admitted, shutting_down
from chattune.serve.keys import ANYBODY, Key, KeyFile, Scope, authenticated, require
from chattune.serve.limits import Limits
from chattune.serve.metrics import Metrics, log_access
from chattune.serve.models import NativeModel, Shelf
from chattune.serve.page import page
from chattune.serve.wire import ChatRequest, CompletionRequest, EmbeddingRequest, Wire, WireError, encoded, parsed, understood

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send
    from starlette.types import Scope as AsgiScope

LOG = logging.getLogger("chattune.serve")
Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)
READERS = 2  # threads that read bodies, tokenise and render
TOLD = 0.5  # seconds after the limit of the drain in which who is cut is told, connections close and engines end; the rest is left


@dataclass
class Server:
    """What one server is made of. Without a key file, or with an empty one, anybody who reaches the port may do all.

    `hosts`: names by which the server may be called besides ``localhost`` and numbers.
    """

    shelf: Shelf
    limits: Limits = field(default_factory=Limits)
    keys: KeyFile | None = None
    hosts: frozenset[str] = frozenset()
    drain: Drain = field(default_factory=Drain)
    allowances: dict[str, Allowance] = field(default_factory=dict)
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "chattune-read"))

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.shelf.all)

    def visitor(self, request: Request, scope: Scope | None) -> Key:
        """The key of a request, if it may do this; without a scope, any key."""
        keys = self.keys.all() if self.keys is not None else ()
        key = authenticated(keys, request.scope["headers"]) if keys else ANYBODY
        request.scope["facts"]["key"] = key.name
        if scope is not None:
            require(key, scope)
        return key

    def around(self, request: Request, key: Key) -> Surroundings:
        """What the answer to this request needs; counts it against its key."""
        self.drain.refuse(self.limits.drain_seconds)
        allowance = self.allowances.get(key.digest)
        if allowance is None:
            allowance = self.allowances[key.digest] = Allowance.of(key)
        allowance.take_request()
        return Surroundings(self.limits, self.metrics, self.drain, key.name, allowance, request.scope["facts"])

    async def read(self, request: Request, kind: type[Body]) -> Body:
        """The body of a request, whole and understood."""
        body = await _body(request, self.limits)
        found = await self.aside(lambda: understood(kind, parsed(body)))
        request.scope["facts"]["model"] = getattr(found, "model", None)
        return found

    async def aside(self, work: Callable[[], Result]) -> Result:
        """Do `work` in a thread: the event loop goes on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work)


class LoadRequest(Wire):
    """``POST /admin/models``: load a run by its name."""

    model: str = Field(min_length=1, max_length=100)


def application(server: Server) -> Front:
    """The ASGI application of a server."""
    api = FastAPI(
        title="chattune", version=chattune.__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        lifespan=_lifespan(server),
    )  # fmt: skip
    _routes_for_people(api, server)
    _routes_of_openai(api, server)
    _routes_for_keepers(api, server)

    @api.exception_handler(WireError)
    async def refused(request: Request, error: WireError) -> Response:
        server.metrics.refused.labels(error.code or str(error.status)).inc()
        return _error(error)

    @api.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        said = {404: f"There is nothing at {request.method} {request.url.path[:200]}.", 405: f"{request.method} is not for this path."}
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return _error(WireError(error.status_code, said.get(error.status_code, str(error.detail)), code=code), error.headers)

    @api.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _error(WireError(500, "A bug in chattune; its log says more, beside the id of this request.", code="internal_error"))

    return Front(api, server)


def _routes_of_openai(api: FastAPI, server: Server) -> None:
    @api.post("/v1/chat/completions", **_takes(ChatRequest, stream=True))
    async def chat_completions(request: Request) -> Response:
        """A reply to a conversation."""
        return await _generated(server, request, ChatRequest)

    @api.post("/v1/completions", **_takes(CompletionRequest, stream=True))
    async def completions(request: Request) -> Response:
        """A text goes on."""
        return await _generated(server, request, CompletionRequest)

    @api.post("/v1/embeddings", **_takes(EmbeddingRequest))
    async def embeddings(request: Request) -> Response:
        """Vectors of texts: the mean of the model's last hidden states, of length 1."""
        around = server.around(request, server.visitor(request, "embeddings"))
        asked = await server.read(request, EmbeddingRequest)
        model = server.shelf.get(asked.model)
        if model.kind != "native":
            return model.forwarded(around, request.url.path, asked)  # type: ignore[no-any-return]
        return Whole(around, lambda: _embedded(server, around, model, asked))

    @api.get("/v1/models")
    async def models(request: Request) -> Response:
        """The models that are served."""
        server.visitor(request, None)
        listed = [wire.listed_model(model.name, model.created, model.kind) for model in server.shelf.all().values()]
        return _json({"object": "list", "data": listed})

    @api.get("/v1/models/{name:path}", responses=_ERRORS)
    async def model(request: Request, name: str) -> Response:
        """One of them."""
        server.visitor(request, None)
        found = server.shelf.get(name)
        return _json(wire.listed_model(found.name, found.created, found.kind))


def _routes_for_people(api: FastAPI, server: Server) -> None:
    @api.get("/")
    async def talk(request: Request) -> Response:
        """A page to try the models with."""
        body, headers = page()
        return Response(body, headers=headers)

    @api.get("/health")
    async def health(request: Request) -> Response:
        """The process lives."""
        return _json({"status": "ok", "version": chattune.__version__})

    @api.get("/ready", responses={503: {"description": "no model yet, or about to end"}})
    async def ready(request: Request) -> Response:
        """Requests are taken."""
        server.drain.refuse(server.limits.drain_seconds)
        if not server.shelf.all():
            raise WireError(503, "No model is loaded.", code="no_model", retry_after=5)
        return _json({"status": "ready", "models": list(server.shelf.all())})


def _routes_for_keepers(api: FastAPI, server: Server) -> None:
    @api.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Figures in Prometheus' format; scope ``metrics``."""
        server.visitor(request, "metrics")
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.post("/admin/models", **_takes(LoadRequest))
    async def load(request: Request) -> Response:
        """Load a run under its name; scope ``admin``."""
        server.visitor(request, "admin")
        server.drain.refuse(server.limits.drain_seconds)
        asked = await server.read(request, LoadRequest)
        found = await server.shelf.load(_run_name(asked.model))
        return _json(wire.listed_model(found.name, found.created, found.kind))

    @api.delete("/admin/models/{name}", responses=_ERRORS)
    async def unload(request: Request, name: str) -> Response:
        """Unload a model when what it answers is answered; scope ``admin``."""
        server.visitor(request, "admin")
        await server.shelf.unload(name, server.limits.drain_seconds)
        return _json({"id": name, "object": "model", "deleted": True})


async def _generated(server: Server, request: Request, kind: type[ChatRequest] | type[CompletionRequest]) -> Answer:
    around = server.around(request, server.visitor(request, "chat"))
    asked = await server.read(request, kind)
    model = server.shelf.get(asked.model)
    if model.kind != "native":
        return model.forwarded(around, request.url.path, asked)  # type: ignore[no-any-return]
    prepared = await server.aside(lambda: model.prepare(asked, around.owner))
    return Generated(around, model, prepared, bool(asked.stream))


async def _embedded(server: Server, around: Surroundings, model: NativeModel, asked: EmbeddingRequest) -> dict[str, Any]:
    places, guess = 1, sum(len(item) for item in asked.input)
    async with admitted(around, model.embedding, model.name, places, guess):
        vectors, tokens = await asyncio.to_thread(model.embed, asked)
        around.facts["used"]["tokens"] = around.facts["prompt_tokens"] = tokens
        server.metrics.tokens.labels(model.name, "prompt").inc(tokens)
    in_base64 = asked.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if in_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _packed(vector: Sequence[float]) -> str:
    """float32, little-endian, in base64: what OpenAI's client asks for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class Front:
    """The outermost layer of the application."""

    def __init__(self, api: FastAPI, server: Server) -> None:
        self.api, self.server = api, server

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.api(scope, receive, send)
            return
        name, began, facts, status = f"req_{secrets.token_hex(12)}", time.perf_counter(), dict[str, Any](), 0
        scope["facts"] = facts
        drain, request = self.server.drain, asyncio.current_task()
        if request is not None and not drain.begun:
            drain.works.add(request)

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({"x-request-id": name, "x-content-type-options": "nosniff"})
            await send(message)

        try:
            wrong = _foreign(scope, self.server.hosts)
            try:
                await (self.api if wrong is None else _error(wrong))(scope, receive, named)
            except asyncio.CancelledError:
                if status or not drain.begun:
                    raise
            if drain.begun and not status:  # the limit came before there was an answer
                await _error(shutting_down())(scope, receive, named)
        except Exception:
            LOG.error("request %s failed", name, exc_info=True)  # it was answered already, where that was possible
        finally:
            drain.works.difference_update({request})
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - began
            self.server.metrics.requests.labels(route, str(status)).inc()
            self.server.metrics.seconds.labels(route).observe(seconds)
            facts.pop("used", None)
            log_access(
                {"time": round(time.time(), 3), "id": name, "method": scope["method"], "route": route, "status": status}
                | {"ms": round(seconds * 1000, 1)} | facts
            )  # fmt: skip


def _foreign(scope: AsgiScope, hosts: frozenset[str]) -> WireError | None:
    """Why a request is not meant for us: a page elsewhere sent it, or made a name of its own lead here (DNS rebinding).

    A number cannot be made to lead elsewhere, so any is taken; of names only ``localhost`` and those in `hosts`.
    """
    found = [value for name, value in scope["headers"] if name == b"host"]
    host = found[0].decode("latin-1").strip().lower() if len(found) == 1 else ""
    if not _may_be_called(_without_port(host), hosts):
        return WireError(403, "The 'Host' is not a name of this server. Allow it with --allow-host.", code="host_not_allowed")
    for name, value in scope["headers"]:
        origin = value.decode("latin-1").lower()
        if name == b"origin" and origin not in (f"http://{host}", f"https://{host}"):
            return WireError(403, "The request comes from a page of another origin.", code="origin_not_allowed")
    return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _may_be_called(name: str, hosts: frozenset[str]) -> bool:
    if name == "localhost" or name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _body(request: Request, limits: Limits) -> bytes:
    """All bytes of the body, within its size and time."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise WireError(415, f"The body must be application/json, not '{kind[:100]}'.", code="unsupported_media_type")
    too_large = WireError(413, f"The body is larger than {limits.body} bytes.", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:19]) > limits.body:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(limits.arrival_seconds):
            async for piece in request.stream():
                found += piece
                if len(found) > limits.body:
                    raise too_large
    except TimeoutError:
        raise WireError(408, f"The body did not come within {limits.arrival_seconds:g} seconds.", code="body_too_slow") from None
    return bytes(found)


def _run_name(text: str) -> str:
    try:
        return check_name(text)  # never a path
    except UsageError as error:
        raise WireError(400, f"Invalid 'model': {error.message}", param="model", code="invalid_value") from None


def _json(data: Any) -> Response:
    return Response(encoded(data), media_type="application/json")


def _error(error: WireError, headers: Any = None) -> Response:
    more = {"retry-after": str(error.retry_after)} if error.retry_after is not None else {}
    more |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
    return Response(encoded(error.body()), error.status, {**(headers or {}), **more}, media_type="application/json")


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": "an error",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object", "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object", "required": ["message", "type", "param", "code"],
                            "properties": {
                                "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
                                "code": {"type": ["string", "null"]},
                            },
                        }
                    },
                }
            }
        },
    }
    for status in (400, 401, 403, 404, 408, 409, 413, 415, 429, 503, 504)
}  # fmt: skip


def _takes(kind: type[BaseModel], stream: bool = False) -> dict[str, Any]:
    """What ``/openapi.json`` says of a route whose body we read ourselves."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    content: dict[str, Any] = {"application/json": {}}
    if stream:
        content["text/event-stream"] = {}
    body = {"required": True, "content": {"application/json": {"schema": _inlined(schema)}}}
    return {"openapi_extra": {"requestBody": body}, "responses": {200: {"description": "the answer", "content": content}, **_ERRORS}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its definitions put where they are used: none refers to itself."""
    definitions = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolved(definitions[node["$ref"].rpartition("/")[2]])
            return {key: resolved(value) for key, value in node.items()}
        return [resolved(item) for item in node] if isinstance(node, list) else node

    found: dict[str, Any] = resolved(schema)
    return found


def _lifespan(server: Server) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        for model in server.shelf.all().values():
            if model.kind == "native":
                model.engine.start()
        watch = asyncio.create_task(server.metrics.watch_loop())
        try:
            yield
        finally:
            watch.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(server.drain.left(TOLD)):
                    await server.shelf.close()
            server.readers.shutdown(wait=False, cancel_futures=True)

    return lifespan


__all__ = ["Front", "Server", "application"]
