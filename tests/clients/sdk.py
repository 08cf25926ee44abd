"""The SDK's own client, 2.x: ``python -m tests.clients.sdk TARGET trio|asyncio``."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import httpx2
import mcp_types
from anyio.to_thread import run_sync
from mcp import Client, StdioServerParameters
from mcp.client import ClientSession
from mcp.client.context import ClientRequestContext
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.streamable_http import streamable_http_client

from tests.clients import story


# The SDK knows that there are extensions. What this one's messages are, it is told here.
class Created(mcp_types.Result):
    """What a call is answered with that became a task."""

    result_type: Literal["task"]
    task_id: str


class Task(mcp_types.Result):
    """How a task stands."""

    status: str
    status_message: str | None = None
    result: dict[str, Any] | None = None
    input_requests: dict[str, Any] | None = None


class Params(mcp_types.RequestParams):
    """About which task; ``input_responses`` for ``tasks/update`` only."""

    task_id: str
    input_responses: dict[str, Any] | None = None


class Request(mcp_types.Request[Params, str]):
    """``tasks/get``, ``tasks/update`` or ``tasks/cancel``."""

    name_param = "taskId"  # the SDK puts it into a header, too


async def get(session: ClientSession, task_id: str) -> Task:
    """Ask how a task stands."""
    request = Request(method="tasks/get", params=Params(task_id=task_id))
    return await session.send_request(request, Task)


async def update(session: ClientSession, task_id: str, **answers: dict[str, Any]) -> None:
    """Answer what a task asks, by key."""
    responses = {key: {"action": "accept", "content": value} for key, value in answers.items()}
    params = Params(task_id=task_id, input_responses=responses)
    await session.send_request(Request(method="tasks/update", params=params), mcp_types.EmptyResult)


async def cancel(session: ClientSession, task_id: str) -> None:
    """Have a task cancelled; that takes effect later."""
    request = Request(method="tasks/cancel", params=Params(task_id=task_id))
    await session.send_request(request, mcp_types.EmptyResult)


async def become(session: ClientSession, task_id: str, *statuses: str) -> Task:
    """Poll until a task is as wished."""
    while (task := await get(session, task_id)).status not in statuses:
        await anyio.sleep(story.PAUSE_S)
    return task


class Tasks(ClientExtension):
    """Tells the server that a call may become a task; ``call_tool`` then waits for its end."""

    identifier = "io.modelcontextprotocol/tasks"

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return (ResultClaim(result_type="task", model=Created, resolve=self.wait),)

    async def wait(self, created: Created, context: ClaimContext) -> mcp_types.CallToolResult:
        task = await become(context.session, created.task_id, "completed", "failed", "cancelled")
        return mcp_types.CallToolResult.model_validate(task.result)


async def nobody(
    context: ClientRequestContext, params: mcp_types.ElicitRequestParams
) -> mcp_types.ElicitResult:
    """Declares that this client can answer; what a task asks does not come here."""
    return mcp_types.ElicitResult(action="cancel")


@asynccontextmanager
async def connected(target: dict[str, Any]) -> AsyncGenerator[Client, None]:
    """Connect to a server: over HTTP with a token, or over stdio."""
    async with httpx2.AsyncClient() as http:
        if "url" in target:
            http.headers["Authorization"] = f"Bearer {target['token']}"
            server: Any = streamable_http_client(target["url"], http_client=http)
        else:
            server = StdioServerParameters(**target)
        async with Client(server, extensions=[Tasks()], elicitation_callback=nobody) as client:
            yield client


# ---- the story -----------------------------------------------------------------------------------


async def start(client: Client, tool: str, **args: Any) -> str:
    """Call a tool that becomes a task; return its id."""
    answer = await client.session.call_tool(tool, args, allow_claimed=True)
    assert isinstance(answer, Created), answer
    return answer.task_id


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
        story.saw("waited", text=text_of(waited.model_dump()))

        sleeper = await start(client, "shell", command=story.TWICE)
        story.saw("started", status=(await get(session, sleeper)).status)
        story.saw("output", text=await output(client, sleeper))

        asking = await start(client, "deploy", where="production")
        await agree(session, asking)
        story.saw("answered", text=await result(session, asking))

        lost = await start(client, "shell", command=story.FOREVER)
        await cancel(session, lost)
        story.saw("cancelled", status=(await become(session, lost, "cancelled")).status)
        listed = await client.call_tool("task_status", {})
        tasks = (listed.structured_content or {})["tasks"]
        story.saw("listed", statuses=[task["status"] for task in tasks])

        parked = await start(client, "deploy", where="staging")
        story.saw("parked", status=(await become(session, parked, "input_required")).status)
        await run_sync(story.kill_the_server)

    async with connected(target) as client:
        session = client.session
        story.saw("found", status=(await get(session, sleeper)).status)
        story.saw("kept", text=await output(client, sleeper))
        await agree(session, sleeper)
        story.saw("resumed", text=await result(session, sleeper))

        await agree(session, parked)  # to resume it
        await agree(session, parked)
        story.saw("answered", text=await result(session, parked))


async def agree(session: ClientSession, task_id: str) -> None:
    """Say yes to the one thing that a task asks, once it asks."""
    task = await become(session, task_id, "input_required")
    ((key, request),) = (task.input_requests or {}).items()
    story.saw("asked", message=request["params"]["message"])
    (field,) = request["params"]["requestedSchema"]["properties"]
    await update(session, task_id, **{key: {field: True}})


async def result(session: ClientSession, task_id: str) -> str:
    """Wait for the result of a task; return the text."""
    return text_of((await become(session, task_id, "completed")).result)


def text_of(result: Any) -> str:
    """Return the first text of a result."""
    text: str = result["content"][0]["text"]
    return text


if __name__ == "__main__":
    anyio.run(main, story.target(), backend=sys.argv[2])
