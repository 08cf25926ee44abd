"""A task at another server: the extension of 2026-07-28 as its client sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import attrs
import trio
from mcp.client import ClientSession
from mcp.client.extension import (
    ClaimContext,
    ClientExtension,
    ResultClaim,
    UnexpectedClaimedResult,
)
from mcp_types import EmptyResult, Request, Result
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from .._json import JsonObject
from ._protocol import EXTENSION, TaskParams, UpdateParams

ANSWER_S = 30.0
"""How long a server may take to answer a request about a task."""


class TaskHandle(Result):
    """What ``tools/call`` is answered with that became a task."""

    result_type: Literal["task"]
    task_id: str


class TaskState(Result):
    """What ``tasks/get`` is answered with."""

    status: str
    status_message: str | None = None
    poll_interval_ms: float | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    input_requests: dict[str, Any] | None = None


class _Get(Request[TaskParams, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    params: TaskParams
    name_param = "taskId"


class _Update(Request[UpdateParams, Literal["tasks/update"]]):
    method: Literal["tasks/update"] = "tasks/update"
    params: UpdateParams
    name_param = "taskId"


class _Cancel(Request[TaskParams, Literal["tasks/cancel"]]):
    method: Literal["tasks/cancel"] = "tasks/cancel"
    params: TaskParams
    name_param = "taskId"


@attrs.frozen
class RemoteTask:
    """A task of the server at the other end of ``session``. What it refuses raises ``MCPError``."""

    session: ClientSession
    task_id: str

    async def get(self) -> TaskState:
        """Ask how it stands."""
        request = _Get(params=TaskParams(task_id=self.task_id))
        return await self.session.send_request(request, TaskState, ANSWER_S)

    async def answer(self, key: str, response: JsonObject) -> None:
        """Answer what it asks under ``key``."""
        params = UpdateParams(task_id=self.task_id, input_responses={key: response})
        await self.session.send_request(_Update(params=params), EmptyResult, ANSWER_S)

    async def cancel(self) -> None:
        """Have it cancelled; that takes effect later."""
        request = _Cancel(params=TaskParams(task_id=self.task_id))
        await self.session.send_request(request, EmptyResult, ANSWER_S)


class TakesTasks(ClientExtension):
    """Declares that a client takes tasks as answers, for those calls that ask for what comes."""

    identifier = EXTENSION

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Return what a task looks like."""
        versions = frozenset(MODERN_PROTOCOL_VERSIONS)
        return (
            ResultClaim(
                result_type="task", model=TaskHandle, resolve=_refuse, protocol_versions=versions
            ),
        )


async def _refuse(handle: TaskHandle, _: ClaimContext) -> NoReturn:
    """Answer for ``Client.call_tool``, which knows of results only."""
    await trio.lowlevel.checkpoint()
    raise UnexpectedClaimedResult(handle)
