"""`Wire`: a client that speaks plain JSON-RPC to a server in this process; and tools for it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import trio
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    InternalError,
    Rejected,
    Stopped,
    TaskResult,
    Tool,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
    background_tool,
)
from trio_bgtasks.mcp import OwnerOf, build_server, chosen_owner

OWNER = "mcp-owner"
EXTENSION = "io.modelcontextprotocol/tasks"
FORM: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}

TASKS: dict[str, Any] = {"elicitation": {}, "extensions": {EXTENSION: {}}}
"""What a client declares that takes tasks and answers questions."""
SILENT: dict[str, Any] = {"extensions": {EXTENSION: {}}}
"""What a client declares that takes tasks, but has nobody to ask."""


class Refusal(Exception):
    """The server answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.code: int = error["code"]
        self.error = error
        super().__init__(error["message"])


@attrs.define(eq=False)
class Wire:
    """One connection. ``told`` are the notifications that came, ``asked`` the server's requests."""

    sending: Any
    receiving: Any
    capabilities: dict[str, Any]
    modern: bool = True
    name: str = "test-client"
    told: list[dict[str, Any]] = attrs.field(factory=list[dict[str, Any]])
    asked: list[dict[str, Any]] = attrs.field(factory=list[dict[str, Any]])
    answers: dict[int, dict[str, Any]] = attrs.field(factory=dict[int, dict[str, Any]])
    ids: Any = attrs.field(factory=lambda: itertools.count(1))
    news: trio.Event = attrs.field(factory=trio.Event)

    async def post(self, method: str, params: dict[str, Any] | None = None) -> int:
        """Send a request; return its id."""
        params = dict(params or {})
        if self.modern:
            params["_meta"] = {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": self.name, "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": self.capabilities,
            }
        number: int = next(self.ids)
        await self.send({"id": number, "method": method, "params": params})
        return number

    async def send(self, message: dict[str, Any]) -> None:
        """Send any message."""
        parsed = jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", **message})
        await self.sending.send(SessionMessage(parsed))

    async def request(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Send a request and return its result; raise `Refusal` if there is none."""
        return await self.answer_to(await self.post(method, params))

    async def answer_to(self, number: int) -> Any:
        """Wait for the answer to a request."""
        await self.until(lambda: number in self.answers)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise Refusal(answer["error"])
        return answer["result"]

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool."""
        return await self.request("tools/call", {"name": name, "arguments": arguments})

    async def get(self, task_id: str) -> Any:
        """Ask for a task."""
        return await self.request("tasks/get", {"taskId": task_id})

    async def until(self, met: Any) -> None:
        """Wait until something that came makes a condition true."""
        with trio.fail_after(3600):  # of virtual time
            while not met():
                await self.news.wait()

    async def read(self) -> None:
        """Sort what comes."""
        async for message in self.receiving:
            came = message.message.model_dump(by_alias=True, mode="json", exclude_none=True)
            if "method" not in came:
                self.answers[came["id"]] = came
            elif "id" in came:
                self.asked.append(came)
            else:
                self.told.append(came)
            self.news.set()
            self.news = trio.Event()


@asynccontextmanager
async def connected(
    server: Any, capabilities: dict[str, Any] | None = None, *, modern: bool = True, **wire: Any
) -> AsyncGenerator[Wire, None]:
    """Give a client that is connected to a server; an older one has shaken hands."""
    to_server, from_client = anyio.create_memory_object_stream[Any](0)
    to_client, from_server = anyio.create_memory_object_stream[Any](0)
    client = Wire(to_server, from_server, capabilities or {}, modern, **wire)
    with to_server, from_client, to_client, from_server:
        async with trio.open_nursery() as nursery:
            options = server.create_initialization_options()
            nursery.start_soon(server.run, from_client, to_client, options)
            nursery.start_soon(client.read)
            if not modern:
                await client.request("initialize", hello(client))
                await client.send({"method": "notifications/initialized"})
            yield client
            nursery.cancel_scope.cancel()


def hello(client: Wire, version: str = "2025-11-25") -> dict[str, Any]:
    """Return the parameters of ``initialize``."""
    info = {"name": client.name, "version": "1"}
    return {
        "protocolVersion": version,
        "capabilities": client.capabilities,
        "clientInfo": info,
    }


def served(
    manager: BackgroundTaskManager, *tools: Tool, owner_of: OwnerOf | None = None, **server: Any
) -> Any:
    """Return a server of some tools."""
    owner_of = owner_of or chosen_owner(OWNER)
    return build_server(manager, tools or TOOLS, owner_of=owner_of, **server)


# ---- tools ---------------------------------------------------------------------------------------


@background_tool
async def work(execution: BackgroundExecution, seconds: float = 0, output: str = "") -> Any:
    """Write and sleep."""
    await execution.write_output(output)
    await trio.sleep(seconds)
    return {"slept": seconds}


@background_tool
async def fail(execution: BackgroundExecution, kind: str = "value", output: str = "") -> None:
    """Write and raise."""
    await execution.write_output(output)
    raise InternalError("broken") if kind == "internal" else ValueError("wrong")


@background_tool
async def ask(execution: BackgroundExecution, questions: int = 1) -> Any:
    """Ask and answer what was answered."""
    answers: dict[str, Any] = {}

    async def one(number: int) -> None:
        answers[str(number)] = await execution.ask(f"Question {number}?", FORM)

    async with trio.open_nursery() as nursery:
        for number in range(questions):
            nursery.start_soon(one, number)
    return answers


@background_tool(supports_resume=True)
async def pause(execution: BackgroundExecution, until: int = 2) -> TaskResult | str:
    """Stop at every attempt but one."""
    await trio.lowlevel.checkpoint()
    return "went on" if execution.attempt >= until else Stopped("paused")


@background_tool
async def give_up() -> TaskResult:
    """Stop for good."""
    await trio.lowlevel.checkpoint()
    return Stopped("gave up")


class Plain(Tool):
    """A tool that only runs in the foreground."""

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor("plain", "Plain tool", "Answer.")

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        await trio.lowlevel.checkpoint()
        return ToolResult.warning("plain", {"owner": ctx.thread_id}, "careful")


Function: Any = type(work)
"""The class of tools that are made of functions."""


class Picky(Function):  # type: ignore[misc]
    """A tool that refuses every call."""

    def prepare_background(self, *_: Any, **__: Any) -> Any:
        raise Rejected(ToolResult.error("picky", "not today"))


@background_tool
async def patient(execution: BackgroundExecution) -> None:
    """Report progress, then run for ever."""
    await execution.report_progress(1, 4, "a quarter")
    await trio.sleep_forever()


async def _picky() -> None:
    """Never run."""


picky = Picky(_picky, supports_resume=False, name="picky")

TOOLS: tuple[Tool, ...] = (work, fail, ask, pause, give_up, patient, Plain(), picky)
