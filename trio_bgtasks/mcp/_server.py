"""`build_server`: the SDK's server, made of a manager and tools."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeAlias

import trio
from mcp.server.lowlevel import NotificationOptions, Server
from mcp_types import (
    CallToolRequestParams,
    PaginatedRequestParams,
    RequestParams,
    ServerCapabilities,
    ServerTasksCapability,
    ServerTasksRequestsCapability,
    SubscriptionsListenRequestParams,
    TasksCallCapability,
    TasksCancelCapability,
    TasksListCapability,
    TasksToolsCapability,
    ToolsCapability,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from .._manager import BackgroundTaskManager
from .._tool import Tool
from ._answers import Answers
from ._calls import Calls
from ._legacy_tasks import LegacyTasks
from ._owners import OwnerOf
from ._protocol import (
    EXTENSION,
    LEGACY_VERSION,
    Context,
    TaskParams,
    UpdateParams,
    is_modern,
    unknown_method,
)
from ._tasks_extension import TasksExtension
from ._toolbox import Toolbox
from ._view import View
from ._watch import Watch

NAME = "trio-bgtasks"
INSTRUCTIONS = (
    "Tools that take run_in_background can run in the background: pass true to get a task_id back "
    "at once, then look with task_status, read with task_output, end with task_cancel. Tasks go on "
    "when you disconnect; task_status without arguments lists all of them, those of earlier "
    "sessions too. A stopped task of a tool that takes a task_id is resumed by calling that tool "
    "with it."
)

Handler: TypeAlias = Callable[[Context, Any], Awaitable[Any]]


class TaskServer(Server[Watch]):
    """The SDK's server; it tells older clients that it has tasks in the core."""

    def get_capabilities(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
        *,
        protocol_version: str | None = None,
    ) -> ServerCapabilities:
        """Return what the server can do, in the words of the client's era."""
        capabilities = super().get_capabilities(
            notification_options,
            experimental_capabilities,
            extensions,
            protocol_version=protocol_version,
        )
        capabilities.tools = ToolsCapability(list_changed=False)  # they are what they are
        if protocol_version not in MODERN_PROTOCOL_VERSIONS:
            capabilities.tasks = ServerTasksCapability(
                list=TasksListCapability(),
                cancel=TasksCancelCapability(),
                requests=ServerTasksRequestsCapability(
                    tools=TasksToolsCapability(call=TasksCallCapability())
                ),
            )
        return capabilities


def build_server(
    manager: BackgroundTaskManager,
    tools: Sequence[Tool],
    *,
    owner_of: OwnerOf,
    name: str = NAME,
    instructions: str = INSTRUCTIONS,
) -> TaskServer:
    """Return a server of the SDK that serves ``tools``, and the task tools, from ``manager``.

    It holds no task itself: it may be built anew at any time, and several may share a manager. Run
    it as any server of the SDK; handlers of your own can be added to it.

    Args:
        manager: Open for as long as the server is served.
        tools: Those that are `BackgroundExecutable` can run in the background.
        owner_of: Whose tasks a request is about.
        name: What the server is called.
        instructions: What models are told of it.

    Raises:
        TypeError: what is no tool, or wrapped in `BackgroundCapable` already, is among ``tools``.
        ValueError: two of them have one id.
    """
    toolbox = Toolbox(manager, tools)
    view = View(manager, toolbox, owner_of)
    answers = Answers(manager, toolbox)
    calls = Calls(view, toolbox, answers)
    modern = TasksExtension(view, answers)
    legacy = LegacyTasks(view, toolbox, calls, answers)

    @asynccontextmanager
    async def lifespan(_: Server[Watch]) -> AsyncGenerator[Watch, None]:
        async with trio.open_nursery() as nursery:
            yield Watch(manager, nursery)
            nursery.cancel_scope.cancel()

    server = TaskServer(
        name, version=version("trio-bgtasks"), instructions=instructions, lifespan=lifespan
    )
    server.extensions[EXTENSION] = {}
    server.middleware.append(legacy.intercept)
    handlers: list[tuple[str, type[RequestParams], Handler]] = [
        ("tools/list", PaginatedRequestParams, calls.list_tools),
        ("tools/call", CallToolRequestParams, calls.call),
        ("subscriptions/listen", SubscriptionsListenRequestParams, modern.listen),
        ("tasks/get", TaskParams, _of_era(modern.get, legacy.get)),
        ("tasks/cancel", TaskParams, _of_era(modern.cancel, legacy.cancel)),
        ("tasks/update", UpdateParams, _of_era(modern.update, None)),
        ("tasks/result", TaskParams, _of_era(None, legacy.result)),
        ("tasks/list", PaginatedRequestParams, _of_era(None, legacy.list)),
    ]
    for method, params, handler in handlers:
        server.add_request_handler(method, params, handler)
    return server


def _of_era(modern: Handler | None, legacy: Handler | None) -> Handler:
    """Return a handler that answers each era in its own way; an era without one has no method."""

    async def handle(ctx: Context, params: Any) -> Any:
        handler = modern if is_modern(ctx) else legacy
        if handler is None or (handler is legacy and ctx.protocol_version != LEGACY_VERSION):
            raise unknown_method(ctx)
        return await handler(ctx, params)

    return handle
