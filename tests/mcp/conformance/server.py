"""The server that the conformance suite expects: its fixture tools, over HTTP on Trio.

``python -m tests.mcp.conformance.server`` prints the URL and serves until its stdin ends.
"""

from __future__ import annotations

import sys
from typing import Any

import attrs
import trio
from mcp_types import (
    CallToolRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequiredResult,
)

from trio_bgtasks import (
    BackgroundExecutable,
    BackgroundExecution,
    ExecutionFailed,
    InternalError,
    TaskResult,
    Tool,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
    background_tool,
    open_task_manager,
)
from trio_bgtasks.mcp import build_server, principal_owner, serve_http


class Greet(Tool):
    """A tool that only runs in the foreground."""

    def descriptor(self) -> ToolDescriptor:
        name = {"type": "string"}
        parameters: Any = {"type": "object", "properties": {"name": name}}
        return ToolDescriptor("greet", "greet", "Say hello.", parameters)

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        return ToolResult.success("greet", f"Hello, {args.get('name', 'World')}!")


class SimpleText(Tool):
    """A tool without arguments."""

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor("test_simple_text", "test_simple_text", "Answer with a text.")

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        text = "This is a simple text response for testing."
        return ToolResult.success("test_simple_text", text)


class Region(Tool):
    """A tool of which an argument is a header, too."""

    def descriptor(self) -> ToolDescriptor:
        region = {"type": "string", "x-mcp-header": "Region"}
        parameters: Any = {"type": "object", "properties": {"region": region}}
        return ToolDescriptor("region", "region", "Answer where.", parameters)

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        return ToolResult.success("region", args.get("region", "nowhere"))


class ErrorHandling(Tool):
    """A tool that fails."""

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor("test_error_handling", "test_error_handling", "Fail.")

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        raise ExecutionFailed("This tool intentionally returns an error for testing")


class JsonSchema(Tool):
    """A tool whose schema uses much of JSON Schema 2020-12."""

    def descriptor(self) -> ToolDescriptor:
        name = "json_schema_2020_12_tool"
        return ToolDescriptor(name, name, "Take an address.", _PERSON)

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        return ToolResult.success("json_schema_2020_12_tool", args)


_PERSON: Any = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


@background_tool
async def slow_compute(seconds: float = 1, label: str = "") -> str:
    """Take a while."""
    await trio.sleep(seconds)
    return f"slept {seconds} s: {label}"


class FailingJob(BackgroundExecutable[None]):
    """A tool that only runs as a task, and fails."""

    task_type = "failing_job"

    def descriptor(self) -> ToolDescriptor:
        needs: Any = {"task_support": "required"}
        return ToolDescriptor("failing_job", "failing_job", "Fail, as a task.", metadata=needs)

    async def execute_background(
        self,
        task_id: str,
        args: Any,
        prepared: None,
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,
        /,
    ) -> TaskResult:
        await trio.sleep(1)
        raise ExecutionFailed("the job failed")


@background_tool
async def protocol_error_job() -> None:
    """Break."""
    await trio.sleep(1)
    raise InternalError("simulated panic")


def _form(field: str, kind: str) -> Any:
    return {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}


@background_tool
async def confirm_delete(execution: BackgroundExecution, filename: str = "a file") -> str:
    """Ask before something happens."""
    answer = await execution.ask(f"Delete {filename}?", _form("confirm", "boolean"))
    return f"{filename}: {answer['confirm']}"


@background_tool
async def multi_input(execution: BackgroundExecution) -> str:
    """Ask two things at once."""
    answers: list[Any] = []

    async def ask(field: str) -> None:
        answers.append(await execution.ask(f"Which {field}?", _form("name", "string")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "name")
        nursery.start_soon(ask, "color")
    return f"{answers}"


_DEFAULTS: Any = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {
            "type": "string",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        "verified": {"type": "boolean", "default": True},
    },
}
_VALUES: Any = [
    {"const": f"value{number}", "title": f"{word} Option"}
    for number, word in enumerate(("First", "Second", "Third"), 1)
]
_ENUMS: Any = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
        "titledSingle": {"type": "string", "oneOf": _VALUES},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {
            "type": "array",
            "items": {"type": "string", "enum": ["option1", "option2", "option3"]},
        },
        "titledMulti": {"type": "array", "items": {"anyOf": _VALUES}},
    },
}
_USER: Any = {
    "type": "object",
    "properties": {"username": {"type": "string"}, "email": {"type": "string"}},
    "required": ["username", "email"],
}


def _asking(name: str, schema: Any) -> Tool:
    """Return a tool that asks once."""

    async def ask(execution: BackgroundExecution, message: str = "Please tell") -> str:
        """Ask the user."""
        return f"User response: {await execution.ask(message, schema)}"

    return background_tool(ask, name=name)


@background_tool(name="test_tool_with_progress")
async def progress(execution: BackgroundExecution) -> str:
    """Say how far it is."""
    for done in (0, 50, 100):
        await execution.report_progress(done, 100)
        await trio.sleep(0.4)  # it is told a few times a second
    return "done"


@background_tool(name="test_tool_with_task")
async def greet_as_task(user_name: str = "") -> str:
    """Greet somebody, as a task."""
    await trio.sleep(1)
    return f"Hello, {user_name}!"


TOOLS: list[Tool] = [
    *(Greet(), SimpleText(), Region(), ErrorHandling(), JsonSchema()),
    *(slow_compute, FailingJob(), protocol_error_job),
    *(confirm_delete, multi_input, greet_as_task, progress),
    _asking("test_elicitation", _USER),
    _asking("test_elicitation_sep1034_defaults", _DEFAULTS),
    _asking("test_elicitation_sep1330_enums", _ENUMS),
]


@attrs.frozen
class AskFirst:
    """A host's own part of the server: `test_tool_with_task` is asked for in several rounds."""

    handler: Any

    async def __call__(self, ctx: Any, params: CallToolRequestParams) -> Any:
        if params.name != "test_tool_with_task":
            return await self.handler(ctx, params)
        response: Any = (params.input_responses or {}).get("user_name")
        if response is None:
            form = ElicitRequestFormParams(
                message="Who are you?", requested_schema=_form("name", "string")
            )
            return InputRequiredResult(input_requests={"user_name": ElicitRequest(params=form)})
        content = response.content or {}
        arguments = {"user_name": content.get("name", "")}
        return await self.handler(ctx, params.model_copy(update={"arguments": arguments}))


def ask_first(server: Any) -> None:
    """Put `AskFirst` before the server's own handler of calls."""
    handler = server.get_request_handler("tools/call").handler
    server.add_request_handler("tools/call", CallToolRequestParams, AskFirst(handler))


async def main() -> None:
    """Serve until stdin ends."""
    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        server = build_server(manager, TOOLS, owner_of=principal_owner)
        ask_first(server)
        print(await nursery.start(serve_http, server), flush=True)
        async with trio.lowlevel.FdStream(0) as stdin:
            async for _ in stdin:
                pass
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    sys.exit(trio.run(main))
