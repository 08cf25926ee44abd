"""`RemoteTool`: a tool of another MCP server as a background tool of ours."""

from __future__ import annotations

from typing import Any

import trio
from mcp import Client
from mcp.client import ClientSession
from mcp.client.context import ClientRequestContext
from mcp_types import ElicitRequestParams, ElicitResult
from mcp_types import Tool as ToolDefinition

from .._executable import TASK_ID_PARAM, Args, BackgroundExecutable, Rejected
from .._execution import BackgroundExecution
from .._json import clone_json
from .._json_schema import schema_validator
from .._parameters import declared, without_added
from .._records import Failed, TaskResult
from .._tool import ToolCallContext, ToolDescriptor, ToolResult
from ._remote_call import RemoteCall
from ._remote_task import TakesTasks


class RemoteTool(BackgroundExecutable[ClientSession]):
    """A tool of another MCP server. No call is made twice, unless the tool says that it may be.

    The id of the remote task is stored before anything else is done with it. An attempt that
    resumes, after a crash, a shutdown or a lost connection, looks for that task and goes on with
    it; if its server does not know it any more, the task fails and says so.

    A cancel and a deadline cancel the remote task, too. A shutdown leaves it alone, as does the
    loss of the task to another executor: a resume is to find it again.

    What the remote task asks a person becomes a question of ours (`BackgroundExecution.ask`), and
    each is answered once. What it says of its status goes to the output log. The value of the
    result is ``{"content", "structuredContent"}`` as the server gave them; an error of the tool
    fails the task with its text, and keeps the value. A remote task that somebody else cancelled
    is a failure: to resume could not change that.

    Where a call is answered at once, or the server or the client does without the extension for
    tasks (2026-07-28), there is nothing to go on with: an attempt that was interrupted in the call
    cannot know whether the tool ran. Then a resume makes the call again if the definition says
    that the tool reads only or is idempotent, and fails otherwise.

    A tool with a parameter ``task_id`` of its own cannot be resumed. Parameters that a server of
    ours added, ``run_in_background`` and ``task_id``, are left out, as the wrapper has them itself.

    Args:
        client: Connected, best one of `remote_client`, for as long as calls are made.
        definition: Of the tool, from ``client.list_tools()``.
        name: What it is called here, if several servers have one of that name.

    Raises:
        TypeError, ValueError: the name, or the definition, does not do for a tool.
    """

    task_type: str = "mcp"  # each instance has its own

    def __init__(
        self, client: Client, definition: ToolDefinition, *, name: str | None = None
    ) -> None:
        try:
            schema_validator(definition.input_schema)
            parameters = without_added(clone_json(definition.input_schema))
        except ValueError as error:
            text = f"the schema of tool {definition.name!r} is not valid: {error}"
            raise ValueError(text) from None
        self._client = client
        self._remote_name = definition.name
        self._descriptor = ToolDescriptor(
            id=definition.name if name is None else name,
            name=definition.name if name is None else name,
            description=definition.description or definition.title or "",
            parameters=parameters,
        )
        self.task_type: str = f"mcp:{self._descriptor.id}"
        self.supports_resume: bool = TASK_ID_PARAM not in declared(parameters)
        hints = definition.annotations
        self._repeatable = bool(hints and (hints.read_only_hint or hints.idempotent_hint))

    def __repr__(self) -> str:
        return f"<RemoteTool {self._descriptor.id}>"

    def descriptor(self) -> ToolDescriptor:
        """Return what the model is shown."""
        return self._descriptor

    def prepare_background(
        self,
        args: Args,  # noqa: ARG002
        ctx: ToolCallContext,  # noqa: ARG002
        /,
        *,
        is_resume: bool,  # noqa: ARG002
    ) -> ClientSession:
        """Refuse the call while there is no connection."""
        try:
            return self._client.session
        except RuntimeError:
            text = "The server is not connected"
            raise Rejected(ToolResult.error(self._descriptor.name, text)) from None

    async def execute_background(
        self,
        task_id: str,  # noqa: ARG002
        args: Args,
        prepared: ClientSession,
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,  # noqa: ARG002
        /,
    ) -> TaskResult:
        """Make the call, or go on with the task that it became."""
        if execution.is_resume and execution.checkpoint is None and not self._repeatable:
            await trio.lowlevel.checkpoint()
            return Failed(
                f"it is unknown whether {self._remote_name!r} ran when the call was interrupted; "
                "it was not called again"
            )
        return await RemoteCall(prepared, self._remote_name, execution).run(args)


async def remote_tools(client: Client) -> list[RemoteTool]:
    """Return the tools of the server that a client is connected to, in their order."""
    tools: list[RemoteTool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += [RemoteTool(client, definition) for definition in page.tools]
        cursor = page.next_cursor
        if cursor is None:
            return tools


def remote_client(server: Any, **options: Any) -> Client:
    """Return the SDK's client of a server, to be entered, for `remote_tools`.

    It tells the server that its calls may become tasks, and that somebody can be asked. Calls made
    with its own ``call_tool`` raise ``UnexpectedClaimedResult`` if they become one.

    Args:
        server: What ``mcp.Client`` takes: a URL, ``StdioServerParameters``, a transport, a server.
        options: Those of ``mcp.Client``. What an older server asks within a call goes to the
            ``elicitation_callback``; by default it is told that nobody answered.
    """
    options.setdefault("elicitation_callback", _nobody)
    options["extensions"] = [*(options.get("extensions") or ()), TakesTasks()]
    return Client(server, **options)


async def _nobody(_: ClientRequestContext, __: ElicitRequestParams) -> ElicitResult:
    """Answer what is asked by a call that cannot be told from others."""
    await trio.lowlevel.checkpoint()
    return ElicitResult(action="cancel")
