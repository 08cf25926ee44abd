"""`Line`: one client's connection to the server, as JSON text; what comes is checked as it comes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any, cast

import attrs
import trio
from mcp.server.stdio import stdio_server
from mcp_types import (
    CallToolResult,
    CancelTaskResult,
    CreateTaskResult,
    ElicitRequest,
    GetTaskResult,
    ListTasksResult,
    ProgressNotification,
    TaskStatusNotification,
    jsonrpc_message_adapter,
)
from mcp_types.methods import validate_server_result

from tests.mcp.schemas import check

EXTENSION = "io.modelcontextprotocol/tasks"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
MODERN, LEGACY = "2026-07-28", "2025-11-25"

Message = dict[str, Any]


@attrs.frozen
class Client:
    """Who speaks: the owner, the era, and what it declares that it can do."""

    owner: str
    modern: bool = True
    takes_tasks: bool = True
    answers: bool = True

    @property
    def capabilities(self) -> Message:
        """What it declares."""
        declared: Message = {"elicitation": {}} if self.answers else {}
        if self.modern and self.takes_tasks:
            declared["extensions"] = {EXTENSION: {}}
        return declared


@attrs.define(eq=False)
class Request:
    """One request: when it was made, by the machine's own count, and the one answer that came."""

    method: str
    params: Message
    stamp: int
    answer: Message | None = None
    failure: Exception | None = None
    given_up: bool = False
    came: trio.Event = attrs.field(factory=trio.Event)
    asked: set[str] = attrs.field(factory=set[str])

    async def answered(self) -> Message:
        """Wait for the answer and return it, a result or an error."""
        await self.came.wait()
        if self.failure is not None:
            raise self.failure
        assert self.answer is not None
        return self.answer

    async def result(self) -> Message:
        """Wait for the answer, which has to be a result."""
        answer = await self.answered()
        assert "result" in answer, f"the answer to {self.method} is {answer}"
        return cast("Message", answer["result"])


@attrs.define(eq=False)
class Line:
    """One connection. ``requests`` are open, ``forms`` what the server asks the client itself."""

    client: Client
    take: Callable[[Line, Request | None, Message], None]
    stamp: Callable[[], int]
    failures: list[Exception]
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    requests: dict[int, Request] = attrs.field(factory=dict[int, Request])
    forms: dict[Any, Any] = attrs.field(factory=dict[Any, Any])
    told: dict[str, int] = attrs.field(factory=dict[str, int])
    _ids: Any = attrs.field(factory=lambda: itertools.count(1))
    _sending: Any = None

    async def serve(
        self, server: Any, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be connected to a server, until the scope is cancelled."""
        self._sending, received = trio.open_memory_channel[str](math.inf)
        with self.scope:
            lines, written = cast("Any", received), cast("Any", _Output(self))
            async with stdio_server(lines, written) as (reading, writing):
                task_status.started()
                await server.run(reading, writing, server.create_initialization_options())

    async def shake_hands(self) -> None:
        """Begin as clients of the older era do."""
        info = {"name": self.client.owner, "version": "1"}
        hello = {"protocolVersion": LEGACY, "clientInfo": info}
        request = self.post("initialize", {**hello, "capabilities": self.client.capabilities})
        assert (await request.result())["protocolVersion"] == LEGACY
        self.send({"method": "notifications/initialized"})

    def post(self, method: str, params: Message) -> Request:
        """Make a request; do not wait."""
        if self.client.modern:
            meta = {
                "io.modelcontextprotocol/protocolVersion": MODERN,
                "io.modelcontextprotocol/clientInfo": {"name": self.client.owner, "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": self.client.capabilities,
            }
            params = {**params, "_meta": {**params.get("_meta", {}), **meta}}
        request = Request(method, params, self.stamp())
        number: int = next(self._ids)
        self.requests[number] = request
        self.send({"id": number, "method": method, "params": params})
        return request

    def give_up(self, request: Request) -> None:
        """Cancel a request: it may still be answered."""
        request.given_up = True
        (number,) = (n for n, one in self.requests.items() if one is request)
        self.send({"method": "notifications/cancelled", "params": {"requestId": number}})

    def send(self, message: Message) -> None:
        """Send any message."""
        self._sending.send_nowait(json.dumps({"jsonrpc": "2.0", **message}))

    def came(self, text: str) -> None:
        """Sort one message, and check its form: what it is of JSON-RPC, and what its type says."""
        jsonrpc_message_adapter.validate_json(text, by_name=False)
        message: Message = json.loads(text)
        if "method" not in message:
            request = self.requests.pop(message["id"], None)
            assert request is not None, f"nothing was asked, or it is answered already: {text}"
            self._answered(request, message)
        elif "id" in message:
            check("ElicitRequest", _without_meta(message))
            ElicitRequest.model_validate(message, by_name=False)
            self.take(self, None, message)
        elif message["method"] == "notifications/cancelled":
            # Also of a form that was withdrawn just before it was sent: then there is none.
            self.forms.pop(message["params"]["requestId"], None)
        else:
            _check_notification(self.client, message)
            self.take(self, None, message)

    def _answered(self, request: Request, message: Message) -> None:
        request.answer = message
        try:
            if "error" in message:
                check("Error", message["error"])
            else:
                _check_result(self.client, request, message["result"])
            self.take(self, request, message)
        except Exception as error:
            request.failure = error
            raise
        finally:
            request.came.set()


@attrs.define(eq=False)
class _Output:
    """What the SDK writes to: hands on whole lines."""

    line: Line

    async def write(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        assert text.endswith("\n")
        assert text.count("\n") == 1, f"more than one line: {text}"
        try:
            self.line.came(text)
        except Exception as error:  # noqa: BLE001 - raised when all has come to rest
            self.line.failures.append(error)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()


def _without_meta(message: Message) -> Message:
    params = {k: v for k, v in message["params"].items() if k != "_meta"}
    return {"method": message["method"], "params": params}


_MODERN: dict[str, str] = {
    "tasks/get": "GetTaskResult",
    "tasks/update": "UpdateTaskResult",
    "tasks/cancel": "CancelTaskResult",
}
_LEGACY: dict[str, Any] = {
    "tasks/get": GetTaskResult,
    "tasks/cancel": CancelTaskResult,
    "tasks/list": ListTasksResult,
    "tasks/result": CallToolResult,
}


def _check_result(client: Client, request: Request, result: Message) -> None:
    """Raise unless a result has the form that its era gives to it."""
    method = request.method
    if client.modern and method in _MODERN:
        assert result["resultType"] == "complete", result
        check(_MODERN[method], result)
    elif client.modern and result.get("resultType") == "task":
        assert method == "tools/call", f"a task as the answer to {method}"
        check("CreateTaskResult", result)
    elif not client.modern and method in _LEGACY:
        _LEGACY[method].model_validate(result, by_name=False)
    elif not client.modern and "task" in request.params:
        CreateTaskResult.model_validate(result, by_name=False)
    else:
        validate_server_result(method, MODERN if client.modern else LEGACY, result)


def _check_notification(client: Client, message: Message) -> None:
    """Raise unless it is one that this client may be told, in its form."""
    match message["method"], client.modern:
        case "notifications/tasks", True:
            check("TaskStatusNotification", message)
        case "notifications/subscriptions/acknowledged", True:
            told = message["params"]["notifications"]
            check("TaskSubscriptionAcknowledgedNotifications", told)
        case "notifications/tasks/status", False:
            TaskStatusNotification.model_validate(message, by_name=False)
        case "notifications/progress", False:
            ProgressNotification.model_validate(message, by_name=False)
        case other:
            raise AssertionError(f"nobody is to be told this: {other}: {message}")
