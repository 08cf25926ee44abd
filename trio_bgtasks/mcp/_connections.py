"""Connections of hypercorn that harm nobody else, whatever the client does with its own.

Hypercorn's own `serve` shields every write, so that one client that never reads would hold up the
server's end, and hands an error of one connection to all. Here each has its own end.
"""

from __future__ import annotations

import logging
import math
import resource
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, cast, final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Receive, Scope, Send

WRITE_S = 60.0
"""How long a client may take for the next 64 KiB of an answer."""
BODY_S = 60.0
"""How long a client may take to send the body of a request."""
IDLE_S = 20
"""How long one may take for the headers of a request; clients keep idle connections for less."""

_PIECE = 1 << 16
_MOMENT_S = 0.5
_BACKLOG = 100

log = logging.getLogger("trio_bgtasks.mcp")


async def serve_connections(
    app: Starlette, host: str, port: int, started: Callable[[str], None]
) -> None:
    """Serve ``app`` at an address until cancelled, and then return within a moment.

    An error of one connection ends that one. Connections take at most half of the files that this
    process may open, so that commands can be started; further ones wait to be accepted.

    Raises:
        OSError: it cannot listen there.
    """
    config = Config()
    config.accesslog = None  # task ids, and whatever else is in a request, are not for a log
    config.errorlog = None
    config.keep_alive_timeout = IDLE_S
    state = ConnectionState({})
    run = partial(_Http1, ASGIWrapper(cast("Any", app)), config, WorkerContext(None), state)
    connections: set[Connection] = set()

    async def serve(stream: trio.SocketStream) -> None:
        connection = Connection(stream)
        connections.add(connection)
        try:
            with connection.scope:
                await run(cast("Any", connection))
        except* Exception as error:  # whoever finds a way to raise it must not reach the others
            log.debug("a connection ended with an error", exc_info=error)
        finally:
            connections.discard(connection)
            listener.release()

    with trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind((host, port))
        sock.listen(_BACKLOG)
        listener = _Places(trio.SocketListener(sock))
        async with app.router.lifespan_context(app), trio.open_nursery() as nursery:
            name, number, *_ = sock.getsockname()
            started(f"http://{f'[{name}]' if ':' in name else name}:{number}")
            try:
                await trio.serve_listeners(serve, [listener], handler_nursery=nursery)
            finally:
                for connection in connections:
                    connection.hang_up()


@final
class _Http1(TCPServer):
    """A connection of HTTP/1.1, which ends when its client asks for HTTP/2.

    In that, hypercorn waits without an end for windows to open, and does not know of idle clients.
    """

    async def _read_data(self) -> None:
        # Past the wrapper, which would replace it by HTTP/2.
        self.protocol = cast("Any", self.protocol.protocol)
        await super()._read_data()


@final
class Connection:
    """The stream of one client. A write that the client does not take in time closes it.

    What is done for the client, within ``scope``, has a moment more when the client has gone;
    hypercorn would wait for its next request, or with one that came already for ever.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.scope = trio.CancelScope()
        self._stream = stream
        self._writing = trio.CancelScope()
        self._end = math.inf
        self.socket = stream.socket
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def receive_some(self, most: int) -> bytes | bytearray:
        """Receive what has come."""
        data = await self._stream.receive_some(most)
        if not data:
            self._gone()
        return data

    def _gone(self) -> None:
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + _MOMENT_S)

    def hang_up(self) -> None:
        """Give what is being written, and will be, one more moment."""
        self._end = trio.current_time() + _MOMENT_S
        self._writing.deadline = min(self._writing.deadline, self._end)

    async def send_all(self, data: bytes) -> None:
        """Send all of it, or close the stream.

        Hypercorn calls it within a shield.

        Raises:
            trio.BrokenResourceError: the client has gone, or does not read.
        """
        try:
            for start in range(0, len(data), _PIECE):
                await self._send_piece(data[start : start + _PIECE])
        except trio.BrokenResourceError:
            self._gone()
            raise

    async def _send_piece(self, data: bytes) -> None:
        deadline = min(trio.current_time() + WRITE_S, self._end)
        with trio.CancelScope(deadline=deadline) as self._writing:
            await self._stream.send_all(data)
        if self._writing.cancelled_caught:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the client does not read")


@final
class _Places(trio.abc.Listener[trio.SocketStream]):
    """A listener that accepts only so many connections at a time; others wait in its queue."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._free = trio.Semaphore(sys.maxsize if files == resource.RLIM_INFINITY else files // 2)
        self.release = self._free.release

    async def accept(self) -> trio.SocketStream:
        """Accept a connection once there is a place for it, which is to be released at its end."""
        await self._free.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self.release()
            raise

    async def aclose(self) -> None:
        """Close it."""
        await self._listener.aclose()


@final
class Exchanges:
    """A middleware of ASGI that brings every request to its end.

    One whose body does not come in time is answered with 408. What hypercorn does after the last
    part of an answer, closing the connection or waiting for its next request for some seconds, is
    done: the SDK cancels it when it is told, in the middle of that, that the request has ended.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        deadline = trio.current_time() + BODY_S
        more = scope["type"] == "http"

        async def receive_in_time() -> MutableMapping[str, Any]:
            nonlocal more
            if not more:
                return await receive()
            with trio.move_on_at(deadline):
                message = await receive()
                more = message.get("more_body", False)
                return message
            raise HTTPException(408)

        async def send_to_the_end(message: MutableMapping[str, Any]) -> None:
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            with trio.CancelScope(shield=ends):  # no longer than a `Connection` may write
                await send(message)

        await self._app(scope, receive_in_time, send_to_the_end)
