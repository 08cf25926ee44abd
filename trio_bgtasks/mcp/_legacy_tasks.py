"""Tasks as 2025-11-25 had them in the core: the client decides, and asks for the result itself."""

from __future__ import annotations

import trio
from mcp.server.context import CallNext, HandlerResult
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    PaginatedRequestParams,
)

from .._background import BackgroundCapable
from .._json import JsonObject
from .._parameters import RUN_IN_BACKGROUND_PARAM
from .._records import TaskStatus
from ._answers import RELATED_TASK, Answers
from ._calls import Calls
from ._look import Seen
from ._protocol import (
    LEGACY_VERSION,
    Context,
    StatusPush,
    TaskParams,
    failure,
    log,
    task_errors,
    unknown_method,
)
from ._toolbox import Toolbox
from ._view import View
from ._watch import Watch
from ._wire import text_of

CANCEL_WAIT_S = 10.0
"""How long ``tasks/cancel`` waits for the end of what it cancelled."""
PAGE = 50
"""Tasks on one page of ``tasks/list``."""


class LegacyTasks:
    """Answers requests of the one older version of the protocol that had tasks."""

    def __init__(self, view: View, toolbox: Toolbox, calls: Calls, answers: Answers) -> None:
        self._view = view
        self._toolbox = toolbox
        self._calls = calls
        self._answers = answers

    # ---- starting -----------------------------------------------------------------------------

    async def intercept(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Answer a ``tools/call`` that asks for a task; a middleware.

        The SDK checks what a handler answers to ``tools/call`` against a schema without tasks; what
        a middleware answers is its own.
        """
        params = ctx.params or {}
        if ctx.method != "tools/call" or params.get("task") is None or not _is_served(ctx):
            return await call_next(ctx)
        call = CallToolRequestParams.model_validate(params, by_name=False)
        tool = self._toolbox.named(call.name)
        if not isinstance(tool, BackgroundCapable):
            raise unknown_method(ctx)
        args = dict(call.arguments or {})
        if not isinstance(args.pop(RUN_IN_BACKGROUND_PARAM, True), bool):
            raise MCPError(INVALID_PARAMS, f"{RUN_IN_BACKGROUND_PARAM} must be a boolean")
        seen = await self._calls.start(ctx, tool, args)
        if not isinstance(seen, Seen):
            raise MCPError(INVALID_PARAMS, text_of(seen))
        task = seen.legacy()
        watch = ctx.lifespan_context
        watch.start_soon(self._push_status, watch, ctx, seen.record.task_id, task)
        return {"task": task}

    async def _push_status(
        self, watch: Watch, ctx: Context, task_id: str, told: JsonObject
    ) -> None:
        """Tell the client that started a task whenever it looks different, until it has stopped."""
        session: ServerSession = ctx.session
        try:
            async with watch.watch(self._view.owner(ctx), [task_id]) as news:
                while True:
                    seen = await self._view.known(ctx, task_id)
                    task = seen.legacy()
                    if task != told:
                        told = task
                        push = StatusPush(params=task)
                        await session.send_notification(push)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - not in its union
                    if seen.state.is_terminal or seen.record.status is TaskStatus.STOPPED:
                        return
                    await news.next()
        except Exception as error:  # noqa: BLE001 - the client is gone, or asks by itself
            log.debug("status of %s not pushed any more: %r", task_id, error)

    # ---- asking -------------------------------------------------------------------------------

    async def get(self, ctx: Context, params: TaskParams) -> JsonObject:
        """Answer ``tasks/get``."""
        return (await self._view.known(ctx, params.task_id)).legacy()

    async def cancel(self, ctx: Context, params: TaskParams) -> JsonObject:
        """Answer ``tasks/cancel``: how the task stands once it has ended, or a while has passed."""
        if not await self._view.cancel(ctx, params.task_id):
            raise MCPError(INVALID_PARAMS, "Cannot cancel task: it has ended")
        async with ctx.lifespan_context.watch(self._view.owner(ctx), [params.task_id]) as news:
            with trio.move_on_after(CANCEL_WAIT_S):
                while not (await self._view.known(ctx, params.task_id)).state.is_terminal:
                    await news.next()
        return await self.get(ctx, params)

    async def list(self, ctx: Context, params: PaginatedRequestParams) -> JsonObject:
        """Answer ``tasks/list``: the requester's tasks, in order of creation, in pages."""
        owner = self._view.owner(ctx)
        with task_errors():
            listed = await self._view.manager.list_tasks(owner, background_only=True)
        task_ids = [task.task_id for task in listed]
        start = 0
        if params.cursor is not None:
            if params.cursor not in task_ids:
                raise MCPError(INVALID_PARAMS, "Invalid cursor")
            start = task_ids.index(params.cursor) + 1
        page = task_ids[start : start + PAGE]
        found = [await self._view.find(ctx, owner, task_id) for task_id in page]
        answer: JsonObject = {"tasks": [seen.legacy() for seen in found if seen is not None]}
        if start + PAGE < len(task_ids):
            answer["nextCursor"] = page[-1]
        return answer

    async def result(self, ctx: Context, params: TaskParams) -> JsonObject:
        """Answer ``tasks/result``: what the call would have answered, once it has ended.

        Meanwhile the client is asked what the task asks.
        """
        asked: set[str] = set()
        async with ctx.lifespan_context.watch(self._view.owner(ctx), [params.task_id]) as news:
            while not (seen := await self._view.known(ctx, params.task_id)).state.is_terminal:
                asks = seen.state.questions is not None  # and the client can answer
                if not asks or not await self._answers.ask_new(ctx, seen.record, asked, news):
                    await news.next()
        related: JsonObject = {RELATED_TASK: {"taskId": params.task_id}}
        if seen.state.result is not None:
            return {**seen.state.result, "_meta": related}
        if seen.state.error is not None:
            raise failure(seen.state.error)
        raise MCPError(INTERNAL_ERROR, "The task was cancelled", {"status": "cancelled"})


def _is_served(ctx: Context) -> bool:
    """Is it a request of a client that speaks this version, and has said so?"""
    return ctx.protocol_version == LEGACY_VERSION and ctx.session.client_params is not None
