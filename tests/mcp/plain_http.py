"""Requests over HTTP, byte by byte: also for what no well-behaved client does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import trio

from tests.mcp.wire import TASKS
from tests.processes import PATIENCE_S


@attrs.define
class Answer:
    """What came back of one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, or what a stream of events tells last."""
        return json.loads(self.body.rpartition(b"data: ")[2].splitlines()[0])


async def post(
    url: str, method: str, /, headers: Mapping[str, str] | None = None, **params: Any
) -> Answer:
    """Send one request over a connection of its own; return the answer."""
    return await exchange(url, request(url, method, headers, **params))


async def exchange(url: str, sent: bytes) -> Answer:
    """Send some bytes over a connection of their own; return the answer."""
    with trio.fail_after(PATIENCE_S):
        async with await connect(url) as stream:
            await stream.send_all(sent)
            return await read_answer(stream)


async def connect(url: str) -> trio.SocketStream:
    """Connect to a server."""
    host, _, port = url.removeprefix("http://").removesuffix("/mcp").rpartition(":")
    return await trio.open_tcp_stream(host.strip("[]"), int(port))


def request(
    url: str, method: str, /, headers: Mapping[str, str] | None = None, **params: Any
) -> bytes:
    """Return a request of 2026-07-28."""
    params["_meta"] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": TASKS,
    }
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    named = {"Mcp-Name": params["name"]} if "name" in params else {}
    return head(url, {"Mcp-Method": method, **named, **(headers or {})}, len(body)) + body


def head(url: str, headers: Mapping[str, str], length: int) -> bytes:
    """Return the first part of a request with a body of some length."""
    host, _, path = url.removeprefix("http://").partition("/")
    sent = {
        "Host": host,
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "Content-Length": str(length),
        "MCP-Protocol-Version": "2026-07-28",
        **headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST /{path} HTTP/1.1\r\n{lines}\r\n".encode()


async def read_answer(stream: trio.SocketStream) -> Answer:
    """Read an answer; one without a length ends with the connection, or with its reader."""
    came = b""
    while b"\r\n\r\n" not in came:
        if not (chunk := await stream.receive_some()):
            raise EOFError(came)
        came += chunk
    top, _, rest = came.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    answer = Answer(int(first.split()[1]), fields, rest)
    while len(answer.body) < int(fields.get("content-length", 1 << 40)):
        if not (chunk := await stream.receive_some()):
            break
        answer.body += chunk
    return answer


def bearer(token: str) -> dict[str, str]:
    """Return the header that a token comes in."""
    return {"Authorization": f"Bearer {token}"}
