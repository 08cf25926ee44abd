"""The client of the SDK 1.30, for the tasks of 2025-11-25: ``python -m tests.clients.sdk_1 TARGET``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx  # noqa: ASYNC127 - this SDK knows no other
from anyio.to_thread import run_sync
from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ElicitResult

from tests.clients import story


async def answer(context: Any, params: Any) -> ElicitResult:
    """Agree to everything."""
    story.saw("asked", message=params.message)
    (field,) = params.requestedSchema["properties"]
    return ElicitResult(action="accept", content={field: True})


@asynccontextmanager
async def connected(target: dict[str, Any]) -> AsyncGenerator[ClientSession, None]:
    """Connect to a server: over HTTP with a token, or over stdio."""
    if "url" in target:
        headers = {"Authorization": f"Bearer {target['token']}"}
        http = httpx.AsyncClient(headers=headers, timeout=60)
        transport = streamable_http_client(target["url"], http_client=http)
    else:
        transport = stdio_client(StdioServerParameters(**target))
    async with (
        transport as (reading, writing, *_),
        ClientSession(reading, writing, elicitation_callback=answer) as session,
    ):
        await session.initialize()
        yield session


async def start(session: ClientSession, tool: str, **args: Any) -> str:
    """Call a tool as a task; return its id."""
    created = await session.experimental.call_tool_as_task(tool, args)
    return created.task.taskId


async def become(session: ClientSession, task_id: str, status: str) -> str:
    """Poll until a task is as wished."""
    async for task in session.experimental.poll_task(task_id):
        if task.status == status:
            break
    return task.status


async def result(session: ClientSession, task_id: str) -> str:
    """Wait for the result of a task, answer what it asks meanwhile; return the text."""
    result = await session.experimental.get_task_result(task_id, CallToolResult)
    return result.content[0].text


async def output(session: ClientSession, task_id: str) -> str:
    """Return what a task has written, once that is something."""
    while True:
        answer = await session.call_tool("task_output", {"task_id": task_id})
        text: str = answer.structuredContent["log"]["text"]
        if text:
            return text
        await anyio.sleep(story.PAUSE_S)


async def main(target: dict[str, Any]) -> None:
    """Play the story."""
    async with connected(target) as session:
        tools = await session.list_tools()
        story.saw("tools", names=[tool.name for tool in tools.tools])
        waited = await session.call_tool("shell", {"command": story.SLOW})
        story.saw("waited", text=waited.content[0].text)

        sleeper = await start(session, "shell", command=story.TWICE)
        story.saw("started", status=(await session.experimental.get_task(sleeper)).status)
        story.saw("output", text=await output(session, sleeper))

        asking = await start(session, "deploy", where="production")
        story.saw("answered", text=await result(session, asking))

        lost = await start(session, "shell", command=story.FOREVER)
        cancelled = await session.experimental.cancel_task(lost)
        story.saw("cancelled", status=cancelled.status)
        listed = await session.experimental.list_tasks()
        story.saw("listed", statuses=[task.status for task in listed.tasks])

        parked = await start(session, "deploy", where="staging")
        story.saw("parked", status=await become(session, parked, "input_required"))
        await run_sync(story.kill_the_server)

    async with connected(target) as session:
        story.saw("found", status=(await session.experimental.get_task(sleeper)).status)
        story.saw("kept", text=await output(session, sleeper))
        story.saw("resumed", text=await result(session, sleeper))
        story.saw("answered", text=await result(session, parked))


if __name__ == "__main__":
    anyio.run(main, story.target())
