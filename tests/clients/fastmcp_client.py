"""FastMCP's client: ``python -m tests.clients.fastmcp_client TARGET``."""

from __future__ import annotations

import asyncio
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from fastmcp_tasks import ToolTask, call_tool_task

from tests.clients import story


async def answer(message: str, response_type: Any, params: Any, context: Any) -> dict[str, Any]:
    """Agree to everything."""
    story.saw("asked", message=message)
    (field,) = params.requested_schema["properties"]
    return {field: True}


def connected(target: dict[str, Any]) -> Client[Any]:
    """Return a client, not connected yet: over HTTP with a token, or over stdio."""
    transport: Any
    if "url" in target:
        transport = StreamableHttpTransport(target["url"], auth=target["token"])
    else:
        transport = StdioTransport(**target, keep_alive=False)
    return Client(transport, elicitation_handler=answer)


async def output(client: Client[Any], task_id: str) -> str:
    """Return what a task has written, once that is something."""
    while True:
        answer = await client.call_tool("task_output", {"task_id": task_id})
        text: str = answer.structured_content["log"]["text"]
        if text:
            return text
        await asyncio.sleep(story.PAUSE_S)


async def main(target: dict[str, Any]) -> None:
    """Play the story."""
    async with connected(target) as client:
        story.saw("tools", names=[tool.name for tool in await client.list_tools()])
        waited = await client.call_tool("shell", {"command": story.SLOW})
        story.saw("waited", text=waited.content[0].text)

        sleeper = await call_tool_task(client, "shell", {"command": story.TWICE})
        story.saw("started", status=(await sleeper.status()).status)
        story.saw("output", text=await output(client, sleeper.task_id))

        asking = await call_tool_task(client, "deploy", {"where": "production"})
        story.saw("answered", text=(await asking.result()).content[0].text)

        lost = await call_tool_task(client, "shell", {"command": story.FOREVER})
        await lost.cancel()
        story.saw("cancelled", status=(await lost.wait()).status)
        listed = await client.call_tool("task_status", {})
        tasks = listed.structured_content["tasks"]
        story.saw("listed", statuses=[task["status"] for task in tasks])

        parked = await call_tool_task(client, "deploy", {"where": "staging"})
        story.saw("parked", status=(await parked.wait(state="input_required")).status)
        await asyncio.to_thread(story.kill_the_server)

    async with connected(target) as client:
        sleeper = ToolTask(client, "shell", sleeper.create_result)
        story.saw("found", status=(await sleeper.status()).status)
        story.saw("kept", text=await output(client, sleeper.task_id))
        story.saw("resumed", text=(await sleeper.result()).content[0].text)

        parked = ToolTask(client, "deploy", parked.create_result)
        story.saw("answered", text=(await parked.result()).content[0].text)


if __name__ == "__main__":
    asyncio.run(main(story.target()))
