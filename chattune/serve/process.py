"""The server as a process: its socket, its signals, and its end without cutting anybody off.

The first SIGTERM or SIGINT lets it go on answering what it took, while it refuses what is new with 503; when all is answered, or the
limit is reached, it ends with 0 (SIGTERM) or 130 (Ctrl-C). A second signal ends it at once.

At the limit the rest is cut, and a second later the process is gone, whatever hangs: `TOLD` seconds are for telling clients, closing
connections and stopping engines, all together; threads that are still at work, say at the grammar of a request that was cut, are
waited for neither by the event loop nor, in a program that ends with `leave`, by the interpreter.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from chattune.core.errors import Interrupted, UsageError
from chattune.serve.app import TOLD, Server, application
from chattune.serve.protocol import HEAD, Connection

SPARE = 256  # files and sockets that are not clients' connections
TICK = 0.1  # seconds; uvicorn's own pace
_served = False  # whether this program has been a server


class Process(uvicorn.Server):
    """One uvicorn server that drains before it ends."""

    def __init__(self, server: Server, host: str, port: int) -> None:
        limits = server.limits
        allowed = _raise_file_limit(limits.connections + SPARE)
        own = {"seconds": limits.arrival_seconds, "stall": limits.stall_seconds, "most": min(limits.connections, allowed - SPARE)}
        limited = type("Limited", (Connection,), own)
        config = uvicorn.Config(
            application(server), host=host, port=port, http=limited, ws="none", loop="asyncio", lifespan="on", log_config=None,
            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=max(1, int(limits.arrival_seconds)),
            timeout_graceful_shutdown=1, h11_max_incomplete_event_size=HEAD, backlog=1024,
        )  # fmt: skip
        super().__init__(config)
        self.server = server
        self.signals: list[int] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # the host program owns the signals
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signals.append(sig)
        if len(self.signals) > 1:
            os._exit(128 + sig)  # asked twice: nothing is waited for
        self.drain()

    def drain(self) -> None:
        """Begin to end."""
        self.server.drain.begin(self.server.limits.drain_seconds)

    async def on_tick(self, counter: int) -> bool:
        if self.server.drain.begun and not self.should_exit:
            await self._drained()
        return await super().on_tick(counter)

    async def _drained(self) -> None:
        """Return when what was taken is answered, or, at the limit, cut; what is left of the time is for connections to close."""
        drain = self.server.drain
        while drain.works and (left := drain.left()) and not self.should_exit:
            await asyncio.wait(set(drain.works), timeout=min(left, TICK))
            await super().on_tick(0)  # sets the date that answers bear
        if drain.works:
            drain.cut()
        self.config.timeout_graceful_shutdown = max(0.0, (drain.left(TOLD) or 0.0) - TICK)  # type: ignore[assignment]  # any number
        self.should_exit = True


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that ends without waiting for threads: what they are at, nobody asks for any more."""

    async def shutdown_default_executor(self, *unused: Any) -> None:
        """`close` tells the threads that nothing more will come."""


def serve(server: Server, bound: socket.socket, told: Callable[[], None] = lambda: None) -> None:
    """Serve on `bound` until a signal ends it; `told` is called when requests are taken. Ctrl-C raises `Interrupted`.

    Threads may still be at work for requests that were cut. The interpreter waits for them when it ends; see `leave`.
    """
    global _served
    _served = True
    _logs()
    host, port = bound.getsockname()[:2]
    process = Process(server, host, port)

    async def run() -> None:
        serving = asyncio.create_task(process.serve(sockets=[bound]))
        while not process.started and not serving.done():
            await asyncio.sleep(0.01)
        if process.started:
            told()
        await serving

    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(run())
    if process.signals and process.signals[0] == signal.SIGINT:
        raise Interrupted(signal.SIGINT, "stopped; what was being answered is answered.")


def leave(code: int) -> None:
    """End this program now with this exit code, where it has been a server; anywhere else nothing happens.

    What asked to be done at the end is done (helper processes, temporary folders, logs) and what was printed is written out. Left out
    is what takes an interpreter with torch half a second and more: to wait for threads, and to take its modules apart.
    """
    if not _served:
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a pipe that nobody reads; closed; none at all
            stream.flush()
    os._exit(code)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or a `UsageError` that says what is in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle on
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen at {host}, port {port}: {reason}.", path="--port", value=port, rule="a free port of this machine",
            hint="Choose another one with --port, or 0 for any.",
        ) from None
    bound.listen(1024)
    return bound


def _raise_file_limit(wanted: int) -> int:
    """Let this process open so many files where it may; how many it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return max(SPARE + 16, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _logs() -> None:
    """Talk and the access log go to stderr; what uvicorn says of strangers' broken requests is the access log's matter."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("chattune.serve", logging.INFO), ("uvicorn.error", logging.CRITICAL)):
        logger = logging.getLogger(name)
        logger.handlers, logger.level, logger.propagate = [handler], level, False
