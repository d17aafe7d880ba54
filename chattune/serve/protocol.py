"""HTTP connections with limits on time: uvicorn's own, which waits forever for a request to begin or to come whole, held to a clock.

Without it a thousand idle connections, or heads sent a byte a minute (slow loris), would stay as long as they like.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import sys
import weakref
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from chattune.serve.wire import WireError, encoded

HEAD = 32 << 10  # bytes of a request line and its headers
_SLICE = 1024  # bytes of a head that are looked at together: what comes whole is not measured by h11
_SAID = {
    400: ("The request is not valid HTTP.", "invalid_http"),
    431: (f"The headers are larger than {HEAD} bytes.", "headers_too_large"),
}


class Connection(H11Protocol):
    """One connection. `seconds`: how long a request may take to come; `most`: connections side by side.

    A client that is gone without a word, its machine cut off or started anew, keeps neither slot nor connection: who waits is asked for
    a sign of life every `alive` (whole) seconds, and who takes nothing of what was sent is left a second after `stall` seconds.
    """

    seconds: ClassVar[float] = 15.0
    stall: ClassVar[float] = 30.0
    alive: ClassVar[int] = 5
    most: ClassVar[int] = 2048

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        # Weak: a connection that its own state holds would wait for the collector of garbage when its client has gone.
        super().__init__(config, server_state, {**app_state, "connection": weakref.ref(self)}, _loop)
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(503, f"{self.most} connections are open already.", "too_many_connections")
            return
        _watch(transport.get_extra_info("socket"), self.alive, self.stall)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            piece, data = data[:_SLICE], data[_SLICE:]
            super().data_received(piece)
        if self.transport.is_closing():
            return
        if data:
            super().data_received(data)
        if self._whole():
            self._rest()
        elif self._due is None:
            self._await_request()

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read: called from within the ``except`` that caught it."""
        status = int(getattr(sys.exc_info()[1], "error_status_hint", 400))
        status = status if status in _SAID else 400
        self._refuse(status, *_SAID[status])

    def abort(self) -> None:
        """End the connection without waiting for what was not read."""
        if not self.transport.is_closing():
            self.transport.abort()

    def _whole(self) -> bool:
        """Whether a request has come to its end, or none has begun."""
        return self.conn.their_state is not h11.SEND_BODY and not self.conn.trailing_data[0]

    def _await_request(self) -> None:
        self._due = self.loop.call_later(self.seconds, self._too_late)

    def _rest(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _too_late(self) -> None:
        self._due = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_request()  # its answer says so itself, within its own time
        elif self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._refuse(408, f"The request did not come within {self.seconds:g} seconds.", "request_too_slow")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """An answer in place of the application's, after which the connection ends."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = encoded(WireError(status, message, code=code).body())
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()


def _watch(line: Any, alive: int, stall: float) -> None:
    """Let the system find out that the other end is gone: by questions while nothing is sent, and by what is never acknowledged."""
    wanted = {"TCP_KEEPIDLE": alive, "TCP_KEEPINTVL": alive, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 1000 + math.ceil(stall * 1000)}
    with contextlib.suppress(AttributeError, OSError):  # not a socket of TCP, or closed already
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in wanted.items():
            if hasattr(socket, name):  # a system has some of them
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
