"""A client of MCP over HTTP that costs next to nothing: what is measured is the server."""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Self

import trio

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {
        "extensions": {"io.modelcontextprotocol/tasks": {}}
    },
}


class HttpClient:
    """One connection, kept alive; ``latencies`` are the seconds that its polls took."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._stream: trio.SocketStream | None = None
        self.latencies: list[float] = []

    async def __aenter__(self) -> Self:
        self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._stream is not None
        await self._stream.aclose()

    def request(self, method: str, **params: Any) -> bytes:
        """Return the bytes of a request."""
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": META}}
        body = json.dumps(message).encode()
        named = f"Mcp-Name: {params['name']}\r\n" if "name" in params else ""
        return (
            f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Authorization: Bearer {self._token}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\nContent-Length: {len(body)}\r\n"
            f"MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: {method}\r\n{named}\r\n"
        ).encode() + body

    async def ask(self, method: str, **params: Any) -> Any:
        """Send a request and return what is answered, a result or an error."""
        assert self._stream is not None
        try:
            return await self._answer(self.request(method, **params))
        except (EOFError, trio.BrokenResourceError):  # it was idle for too long
            await self._stream.aclose()
            await self.__aenter__()
            return await self._answer(self.request(method, **params))

    async def _answer(self, request: bytes) -> Any:
        assert self._stream is not None
        await self._stream.send_all(request)
        came = b""
        while b"\r\n\r\n" not in came:
            came += await self._some()
        top, _, body = came.partition(b"\r\n\r\n")
        lines = [line.partition(b": ") for line in top.lower().split(b"\r\n")]
        (length,) = (int(value) for name, _, value in lines if name == b"content-length")
        while len(body) < length:
            body += await self._some()
        answer = json.loads(body)
        return answer.get("result", answer.get("error"))

    async def _some(self) -> bytes:
        assert self._stream is not None
        if not (data := bytes(await self._stream.receive_some())):
            raise EOFError("the server closed the connection")
        return data

    async def call(self, name: str, **arguments: Any) -> Any:
        """Call a tool in the background, and return the id of its task."""
        arguments["run_in_background"] = True
        answer = await self.ask("tools/call", name=name, arguments=arguments)
        return answer["structuredContent"]["task_id"]

    async def poll(self, task_id: str) -> Any:
        """Ask for a task, and note how long that took."""
        began = time.perf_counter()
        answer = await self.ask("tasks/get", taskId=task_id)
        self.latencies.append(time.perf_counter() - began)
        return answer

    async def listen(self, task_ids: list[str]) -> None:
        """Listen to tasks; what is told is read by `read`, or by nobody."""
        assert self._stream is not None
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listen = self.request("subscriptions/listen", notifications={"taskIds": task_ids})
        await self._stream.send_all(listen)

    async def read(self) -> None:
        """Read whatever comes, for ever."""
        while True:
            await self._some()

    async def go_silent(self) -> None:
        """Send half of a request, and never anything again."""
        assert self._stream is not None
        await self._stream.send_all(self.request("tools/list")[:-1])
