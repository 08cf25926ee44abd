"""Serving one client over standard input and output."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final

import trio

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

MAX_LINE = 4 << 20
"""Bytes of the longest message that is read; as over HTTP."""
_MOMENT_S = 1.0
_Streams: TypeAlias = tuple[trio.abc.ReceiveStream, trio.abc.SendStream]
_TOO_LONG = "\0"  # no JSON: passed over, as any other line that is none


async def serve_stdio(server: Server[Any]) -> None:
    """Serve the client at the other end of standard input and output, until it closes them.

    Returns at the end of input, with a moment for what the client has not read yet, and at once
    when it reads no more, or when cancelled; tasks go on for as long as their manager does.
    Meanwhile descriptor 0 is empty and 1 is standard error, so that nothing that a tool prints, or
    starts, gets between the messages.

    Raises:
        ExceptionGroup: of the `OSError` with which standard input or output failed.
    """
    from mcp.server.stdio import stdio_server  # noqa: PLC0415 - it takes a second to import

    async with _standard_streams() as (stdin, stdout):
        with trio.CancelScope() as scope:
            lines = _Lines(stdin, scope)
            streams = stdio_server(cast("Any", lines), cast("Any", _Writer(stdout, scope)))
            async with streams as (reading, writing):
                await server.run(reading, writing, server.create_initialization_options())


@asynccontextmanager
async def _standard_streams() -> AsyncGenerator[_Streams, None]:
    """Give both streams; what others read and write there is not ours meanwhile."""
    sys.stdout.flush()
    with _claimed(0, os.devnull) as stdin, _claimed(1, None) as stdout:
        # Not the default streams: reading in a thread, they could not be cancelled.
        async with (
            trio.lowlevel.FdStream(stdin) as reader,
            trio.lowlevel.FdStream(stdout) as writer,
        ):
            yield reader, writer


@contextmanager
def _claimed(number: int, instead: str | None) -> Generator[int, None, None]:
    """Give a copy of a standard descriptor, which is another file meanwhile (None: stderr)."""
    ours = os.dup(number)
    try:
        other = os.dup(2) if instead is None else os.open(instead, os.O_RDONLY)
        os.dup2(other, number)
        os.close(other)
        yield os.dup(ours)
    finally:
        os.dup2(ours, number)
        os.close(ours)


@final
class _Lines:
    """The lines of a stream, as text; one that is too long is one that is no message.

    At its end, the scope has a moment more.
    """

    def __init__(self, stream: trio.abc.ReceiveStream, scope: trio.CancelScope) -> None:
        self._stream = stream
        self._scope = scope

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        rest, too_long = b"", False
        async for chunk in self._chunks():
            *lines, tail = chunk.split(b"\n")
            for line in lines:
                whole, rest = rest + line, b""
                if too_long or len(whole) > MAX_LINE:
                    too_long = False
                    yield _TOO_LONG
                elif whole.strip():
                    yield whole.decode(errors="replace")
            rest += tail
            if len(rest) > MAX_LINE:
                rest, too_long = b"", True
        self._scope.deadline = trio.current_time() + _MOMENT_S

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._stream:
                yield bytes(chunk)
        except trio.BrokenResourceError as error:
            _raise_unless_gone(error)


@final
class _Writer:
    """A stream that takes text. When nobody reads that any more, the scope is cancelled."""

    def __init__(self, stream: trio.abc.SendStream, scope: trio.CancelScope) -> None:
        self._stream = stream
        self._scope = scope

    async def write(self, text: str) -> None:
        try:
            await self._stream.send_all(text.encode())
        except trio.BrokenResourceError as error:
            _raise_unless_gone(error)
            self._scope.cancel()

    async def flush(self) -> None:
        """Do nothing: what was written is sent."""


def _raise_unless_gone(error: trio.BrokenResourceError) -> None:
    """A client that is gone is no error; any other fault of a stream is told as what it is."""
    if not isinstance(error.__cause__, ConnectionError):
        raise error.__cause__ or error from None
