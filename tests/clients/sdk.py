"""The SDK's own client, 2.x: ``python -m tests.clients.sdk TARGET trio|asyncio``."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
from anyio.to_thread import run_sync
from mcp import Client, StdioServerParameters
from mcp.client.context import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ElicitRequestFormParams, ElicitRequestParams, ElicitResult

from tests.clients import story
from tests.clients.tasks_extension import Created, Task, Tasks, cancel, get, result


async def agree(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    """Say yes to everything."""
    assert isinstance(params, ElicitRequestFormParams), params
    story.saw("asked", message=params.message)
    (field,) = params.requested_schema["properties"]
    return ElicitResult(action="accept", content={field: True})


@asynccontextmanager
async def connected(target: dict[str, Any]) -> AsyncGenerator[Client, None]:
    """Connect to a server: over HTTP with a token, or over stdio."""
    async with httpx2.AsyncClient() as http:
        if "url" in target:
            http.headers["Authorization"] = f"Bearer {target['token']}"
            server: Any = streamable_http_client(target["url"], http_client=http)
        else:
            server = StdioServerParameters(**target)
        async with Client(server, extensions=[Tasks()], elicitation_callback=agree) as client:
            yield client


async def start(client: Client, tool: str, **args: Any) -> str:
    """Call a tool that becomes a task; return its id."""
    answer = await client.session.call_tool(tool, args, allow_claimed=True)
    assert isinstance(answer, Created), answer
    return answer.task_id


async def become(client: Client, task_id: str, status: str) -> Task:
    """Poll until a task is as wished."""
    while (task := await get(client.session, task_id)).status != status:
        await anyio.sleep(story.PAUSE_S)
    return task


async def output(client: Client, task_id: str) -> str:
    """Return what a task has written, once that is something."""
    while True:
        answer = await client.call_tool("task_output", {"task_id": task_id})
        text: str = (answer.structured_content or {})["log"]["text"]
        if text:
            return text
        await anyio.sleep(story.PAUSE_S)


async def main(target: dict[str, Any]) -> None:
    """Play the story."""
    async with connected(target) as client:
        session = client.session
        tools = await client.list_tools()
        story.saw("tools", names=[tool.name for tool in tools.tools])
        waited = await client.call_tool("shell", {"command": story.SLOW})
        story.saw("waited", text=text_of(waited))

        sleeper = await start(client, "shell", command=story.TWICE)
        story.saw("started", status=(await get(session, sleeper)).status)
        story.saw("output", text=await output(client, sleeper))

        answered = await client.call_tool("deploy", {"where": "production"})
        story.saw("answered", text=text_of(answered))

        lost = await start(client, "shell", command=story.FOREVER)
        await cancel(session, lost)
        story.saw("cancelled", status=(await become(client, lost, "cancelled")).status)
        listed = await client.call_tool("task_status", {})
        tasks = (listed.structured_content or {})["tasks"]
        story.saw("listed", statuses=[task["status"] for task in tasks])

        parked = await start(client, "deploy", where="staging")
        story.saw("parked", status=(await become(client, parked, "input_required")).status)
        await run_sync(story.kill_the_server)

    async with connected(target) as client:
        session = client.session
        story.saw("found", status=(await get(session, sleeper)).status)
        story.saw("kept", text=await output(client, sleeper))
        story.saw("resumed", text=text_of(await result(session, sleeper)))
        story.saw("answered", text=text_of(await result(session, parked)))


def text_of(result: CallToolResult) -> str:
    """Return the first text of a result."""
    text: str = result.model_dump()["content"][0]["text"]
    return text


if __name__ == "__main__":
    anyio.run(main, story.target(), backend=sys.argv[2])
