"""The extension that our pages give to readers: what comes of calls that became tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from mcp import Client, MCPError
from mcp.client.context import ClientRequestContext
from mcp_types import ElicitRequestParams, ElicitResult
from trio.testing import MockClock

from tests.clients.tasks_extension import TaskCancelled, Tasks, cancel
from trio_bgtasks import BackgroundExecution, InternalError, background_tool, open_task_manager
from trio_bgtasks.mcp import build_server, chosen_owner


@background_tool
async def quiz(execution: BackgroundExecution) -> str:
    """Ask twice."""
    one = await execution.ask("One?", {"type": "string"})
    two = await execution.ask("Two?", {"type": "string"})
    return f"{one}, {two}"


@background_tool
async def breaks(after_s: float) -> str:
    """Break its contract."""
    await trio.sleep(after_s)
    raise InternalError("the tool is broken")


@background_tool
async def sleeps() -> str:
    """Never end."""
    await trio.sleep_forever()
    raise AssertionError


async def fill(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    """Answer with the question."""
    return ElicitResult(action="accept", content={"answer": params.message.rstrip("?")})


@asynccontextmanager
async def connected() -> AsyncGenerator[Client, None]:
    """Return a client with the extension, at a server with these tools; not for a minute."""
    with trio.fail_after(60):
        async with open_task_manager() as manager:
            server = build_server(manager, [quiz, breaks, sleeps], owner_of=chosen_owner("me"))
            async with Client(server, extensions=[Tasks()], elicitation_callback=fill) as client:
                yield client


async def test_a_call_is_answered_by_the_callback(autojump_clock: MockClock) -> None:
    """The callback is asked each question once, and the call returns the tool's result."""
    async with connected() as client:
        answer = await client.call_tool("quiz", {})
    assert answer.model_dump()["content"][0]["text"] == "One, Two"


async def test_a_failed_task_raises_its_error(autojump_clock: MockClock) -> None:
    """The error of a task that failed is raised as the server tells it."""
    async with connected() as client:
        with pytest.raises(MCPError, match="the tool is broken"):
            await client.call_tool("breaks", {"after_s": 5})


async def test_a_cancelled_task_says_so(autojump_clock: MockClock) -> None:
    """A call whose task somebody cancels ends with that as its error."""
    async with connected() as client, trio.open_nursery() as nursery:

        async def cancel_it() -> None:
            await trio.sleep(5)
            listed = await client.call_tool("task_status", {})
            (task,) = (listed.structured_content or {})["tasks"]
            await cancel(client.session, task["task_id"])

        nursery.start_soon(cancel_it)
        with pytest.raises(TaskCancelled, match="cancelled"):
            await client.call_tool("sleeps", {})
