"""``tools/list`` and ``tools/call``: which call becomes a task, and what the others answer."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import trio
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    CallToolRequestParams,
    ListToolsResult,
    PaginatedRequestParams,
)

from .._background import BackgroundCapable
from .._json import JsonObject
from .._outcome import describe, leaves
from .._parameters import RUN_IN_BACKGROUND_PARAM
from .._records import OutputPage, Progress, TaskRecord
from .._tool import InternalError, Tool, ToolCallContext, ToolError, ToolResult
from ._answers import Answers
from ._look import Seen, output_end
from ._protocol import (
    Context,
    can_answer,
    declares_extension,
    failure,
    is_modern,
    log,
    require_extension,
    unknown_method,
)
from ._toolbox import Toolbox, is_required
from ._view import View
from ._watch import News
from ._wire import call_result, tool_call_result

MOMENT_S = 0.5
"""How long a call of a client that takes tasks may run before it is answered as one."""


def new_task_id() -> str:
    """Return an id that nobody can guess: 128 random bits."""
    return f"task_{secrets.token_hex(16)}"


class Calls:
    """Answers ``tools/list`` and ``tools/call``."""

    def __init__(self, view: View, toolbox: Toolbox, answers: Answers) -> None:
        self._view = view
        self._manager = view.manager
        self._toolbox = toolbox
        self._answers = answers

    async def list_tools(self, ctx: Context, params: PaginatedRequestParams) -> ListToolsResult:  # noqa: ARG002
        """Answer ``tools/list``."""
        await trio.lowlevel.checkpoint()
        return ListToolsResult(tools=self._toolbox.definitions())

    async def call(self, ctx: Context, params: CallToolRequestParams) -> JsonObject:
        """Answer ``tools/call``.

        A call whose model asked for ``run_in_background`` is answered with the task's id, for the
        model. Any other call of a tool that can run in the background becomes a task for a client
        that declared the extension, unless it ends within a moment.
        """
        return {"resultType": "complete", **await self._answer(ctx, params)}

    async def _answer(self, ctx: Context, params: CallToolRequestParams) -> JsonObject:
        tool = self._toolbox.named(params.name)
        args: JsonObject = params.arguments or {}
        background = args.get(RUN_IN_BACKGROUND_PARAM, False) is not False  # or no boolean
        if isinstance(tool, BackgroundCapable) and not background:
            if declares_extension(ctx):
                return await self._call_as_task(ctx, tool, args)
            if is_required(tool):
                if is_modern(ctx):
                    require_extension(ctx)
                raise unknown_method(ctx)  # what 2025-11-25 has for it
        return await self._run(ctx, tool, args)

    # ---- calls that become tasks --------------------------------------------------------------

    async def _call_as_task(
        self, ctx: Context, tool: BackgroundCapable, args: JsonObject
    ) -> JsonObject:
        seen = await self.start(ctx, tool, args, wait_s=MOMENT_S)
        if not isinstance(seen, Seen):
            return seen
        if seen.state.result is not None:
            return seen.state.result
        if seen.state.error is not None:
            raise failure(seen.state.error)
        if seen.state.status == "cancelled":
            return call_result(None, message="The call was cancelled", is_error=True)
        return {"resultType": "task", **seen.modern(detailed=False)}

    async def start(
        self, ctx: Context, tool: BackgroundCapable, args: Mapping[str, Any], *, wait_s: float = 0
    ) -> Seen | JsonObject:
        """Start a call in the background; return its task, or the answer if there is none.

        The task is stored. If it ends, or asks something, within ``wait_s``, that is seen.
        """
        owner = self._view.owner(ctx)
        result = await self._execute(
            tool, {**args, RUN_IN_BACKGROUND_PARAM: True}, self._context(ctx, owner)
        )
        match result.data:
            case {"task_id": str(task_id)} if not result.is_error:
                pass  # started, or how it stands: a task all the same
            case _:
                return tool_call_result(result)
        watch = ctx.lifespan_context
        async with watch.watch(owner, [task_id]) as news:
            with trio.move_on_after(wait_s):
                while (seen := await self._view.known(ctx, task_id)).state.status == "working":
                    await news.next()
                return seen
        return await self._view.known(ctx, task_id)

    # ---- calls that are answered --------------------------------------------------------------

    async def _run(self, ctx: Context, tool: Tool, args: JsonObject) -> JsonObject:
        owner = self._view.owner(ctx)
        context = self._context(ctx, owner)
        if isinstance(tool, BackgroundCapable):
            task_id = self._toolbox.resumed_by(tool, args) or context.task_id or ""
            with self._relayed(ctx, owner, task_id):
                result = await self._execute(tool, args, context)
        else:
            result = await self._execute(tool, args, context)
        return tool_call_result(result, await self._output_of(owner, result.metadata))

    async def _output_of(self, owner: str, metadata: JsonObject) -> OutputPage | None:
        """Return the end of the output of the task that a call was, if it was one."""
        task_id = metadata.get("task_id")
        if not isinstance(task_id, str):
            return None
        try:
            record = await self._manager.record(owner, task_id)
            return None if record is None else await output_end(self._manager, record)
        except Exception:  # noqa: BLE001 - what the tool answered is told all the same
            log.exception("the output of %s is not shown", task_id)
            return None

    @contextmanager
    def _relayed(self, ctx: Context, owner: str, task_id: str) -> Generator[None, None, None]:
        """Within the block, pass on what a task tells and asks to who can take it."""
        wants_progress = "progress_token" in (ctx.meta or {})
        scope = trio.CancelScope()
        if wants_progress or _can_be_asked(ctx):
            ctx.lifespan_context.start_soon(self._relay, scope, ctx, owner, task_id)
        try:
            yield
        finally:
            scope.cancel()

    async def _relay(self, scope: trio.CancelScope, ctx: Context, owner: str, task_id: str) -> None:
        told: Progress | None = None
        asked: set[str] = set()
        try:
            with scope:
                async with ctx.lifespan_context.watch(owner, [task_id]) as news:
                    while True:
                        record = await self._manager.record(owner, task_id)
                        progress = None if record is None else record.progress
                        if progress is not None and progress != told:
                            told = progress
                            await ctx.session.report_progress(*attrs.astuple(progress))
                        if record is None or not await self._ask(ctx, record, asked, news):
                            await news.next()
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            log.debug("nothing more of %s is passed on: %r", task_id, error)

    async def _ask(self, ctx: Context, record: TaskRecord, asked: set[str], news: News) -> bool:
        return _can_be_asked(ctx) and await self._answers.ask_new(ctx, record, asked, news)

    async def _execute(self, tool: Tool, args: JsonObject, context: ToolCallContext) -> ToolResult:
        """Return what a tool answers, or an error that says what it raises."""
        try:
            tool.validate_args(args)
            return await tool.execute(args, context)
        except InternalError as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from error
        except ToolError as error:
            text = str(error)
        except Exception as error:  # noqa: BLE001 - the model is to know; the record has it, too
            text = describe(leaves(error))
        # What its task wrote before that, if it was one, is shown as for any other answer.
        metadata: JsonObject = {"task_id": context.task_id}
        return attrs.evolve(ToolResult.error("", text), metadata=metadata)

    def _context(self, ctx: Context, owner: str) -> ToolCallContext:
        return ToolCallContext(
            call_id=str(ctx.request_id),
            source="mcp",
            thread_id=owner,
            task_id=new_task_id(),
        )


def _can_be_asked(ctx: Context) -> bool:
    """Can the client be asked within its request? Of an era that has no such requests none can."""
    return can_answer(ctx) and ctx.session.can_send_request
