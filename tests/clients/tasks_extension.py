"""The extension ``io.modelcontextprotocol/tasks`` for ``mcp.Client``, 2.x.

``Client(server, extensions=[Tasks()], elicitation_callback=...)``: a call may become a task, and
``call_tool`` waits for it. The callback answers what the task asks meanwhile; without one the
server takes the client for one that cannot answer, and the task waits for somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import anyio
from mcp import MCPError
from mcp.client import ClientSession
from mcp.client.context import ClientRequestContext
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import (
    CallToolResult,
    EmptyResult,
    ErrorData,
    InputRequest,
    InputResponse,
    Request,
    RequestParams,
    Result,
)

PAUSE_S = 0.5


# The SDK knows that there are extensions. What this one's messages are, it is told here.
class Created(Result):
    """What a call is answered with that became a task."""

    result_type: Literal["task"]
    task_id: str


class Task(Result):
    """How a task stands."""

    status: str
    status_message: str | None = None
    result: CallToolResult | None = None
    error: ErrorData | None = None
    input_requests: dict[str, InputRequest] | None = None


class TaskParams(RequestParams):
    """About which task; ``input_responses`` for ``tasks/update`` only."""

    task_id: str
    input_responses: dict[str, InputResponse] | None = None


class TaskRequest(Request[TaskParams, str]):
    """``tasks/get``, ``tasks/update`` or ``tasks/cancel``."""

    name_param = "taskId"  # the SDK puts it into a header, too


class TaskCancelled(Exception):
    """A task was cancelled, so it has no result."""


async def get(session: ClientSession, task_id: str) -> Task:
    """Ask how a task stands."""
    request = TaskRequest(method="tasks/get", params=TaskParams(task_id=task_id))
    return await session.send_request(request, Task)


async def cancel(session: ClientSession, task_id: str) -> None:
    """Have a task cancelled; that takes effect later."""
    request = TaskRequest(method="tasks/cancel", params=TaskParams(task_id=task_id))
    await session.send_request(request, EmptyResult)


async def answer(session: ClientSession, task_id: str, key: str, request: InputRequest) -> None:
    """Have the client's callback answer one thing that a task asks."""
    context = ClientRequestContext(session=session, request_id=key)
    response = await session.dispatch_input_request(context, request)
    if isinstance(response, ErrorData):
        raise MCPError.from_error_data(response)
    params = TaskParams(task_id=task_id, input_responses={key: response})
    await session.send_request(TaskRequest(method="tasks/update", params=params), EmptyResult)


async def result(session: ClientSession, task_id: str) -> CallToolResult:
    """Wait for the result of a task, and answer what it asks meanwhile.

    Raises:
        MCPError: It failed, or an answer was refused.
        TaskCancelled: It was cancelled.
    """
    answered = set()
    while True:
        task = await get(session, task_id)
        if task.result is not None:
            return task.result
        if task.error is not None:
            raise MCPError.from_error_data(task.error)
        if task.status == "cancelled":
            raise TaskCancelled(task.status_message or f"{task_id} was cancelled")
        for key, request in (task.input_requests or {}).items():
            if key not in answered:  # nothing is asked twice under one key
                await answer(session, task_id, key, request)
                answered.add(key)
        await anyio.sleep(PAUSE_S)


class Tasks(ClientExtension):
    """Tells the server that a call may become a task; ``call_tool`` then waits for its end."""

    identifier = "io.modelcontextprotocol/tasks"

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return (ResultClaim(result_type="task", model=Created, resolve=self.wait),)

    async def wait(self, created: Created, context: ClaimContext) -> CallToolResult:
        return await result(context.session, created.task_id)
