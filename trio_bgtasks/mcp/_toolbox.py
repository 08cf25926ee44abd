"""The tools of one server: under which names clients see them, and which can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import attrs
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, ToolExecution
from mcp_types import Tool as ToolDefinition

from .._background import BackgroundCapable
from .._executable import TASK_ID_PARAM, BackgroundExecutable
from .._json import JsonObject
from .._manager import BackgroundTaskManager
from .._parameters import RUN_IN_BACKGROUND_PARAM
from .._records import TaskRecord
from .._tool import InvalidArguments, Tool, ToolCallContext
from ..tools import task_tools

TASK_SUPPORT = "task_support"
"""The key, in a descriptor's metadata, of what a tool asks for: ``"required"`` for tasks only."""


@attrs.frozen
class Resumable:
    """A tool whose stopped tasks can go on, and how a call of it names one."""

    tool: BackgroundExecutable[Any]
    capable: BackgroundCapable

    def args_for(self, task_id: str) -> JsonObject | None:
        """Return the arguments of a call that resumes a task; None: the tool has no such call."""
        calls: list[JsonObject] = [{TASK_ID_PARAM: task_id}, self.tool.with_task_id({}, task_id)]
        for args in calls:
            if self.tool.task_id_from_args(args) == task_id:
                return args
        return None


class Toolbox:
    """The tools of one server, by the names that its clients see."""

    def __init__(self, manager: BackgroundTaskManager, tools: Sequence[Tool]) -> None:
        self.tools: dict[str, Tool] = {}
        self.resumable: dict[str, Resumable] = {}
        for tool in (*tools, *task_tools(manager)):
            if isinstance(tool, BackgroundCapable):
                raise TypeError(
                    f"{tool!r} is wrapped already: give the server the BackgroundExecutable itself"
                )
            if not isinstance(tool, Tool):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"a tool must be a Tool, not {type(tool).__name__}")
            name = tool.descriptor().id
            if name in self.tools:
                raise ValueError(f"two tools have the id {name!r}")
            self.tools[name] = self._wrapped(tool, manager)

    def _wrapped(self, tool: Tool, manager: BackgroundTaskManager) -> Tool:
        if not isinstance(tool, BackgroundExecutable):
            return tool
        executable: BackgroundExecutable[Any] = tool  # pyright: ignore[reportUnknownVariableType]
        capable = BackgroundCapable(executable, manager)
        if executable.supports_resume:
            self.resumable.setdefault(executable.task_type, Resumable(executable, capable))
        return capable

    def named(self, name: str) -> Tool:
        """Return a tool; MCPError when there is none of that name."""
        tool = self.tools.get(name)
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {name}")
        return tool

    def resumed_by(self, tool: BackgroundCapable, args: JsonObject) -> str | None:
        """Return the id of the task that a call resumes, if it does."""
        with suppress(Exception):  # what is wrong with them, the call itself tells
            for one in self.resumable.values():
                if one.capable is tool:
                    return one.tool.task_id_from_args(args)
        return None

    async def resume(self, record: TaskRecord) -> None:
        """Resume a stopped task with the arguments that it had.

        Raises:
            InvalidArguments: its tool has no way to do that, or refuses.
            ToolError: it could not be resumed.
        """
        found = self.resumable[record.task_type]
        args = found.args_for(record.task_id)
        if args is None:
            raise InvalidArguments(f"{found.tool!r} cannot be told which task to resume")
        context = ToolCallContext(source="mcp", thread_id=record.owner_thread_id)
        result = await found.capable.execute({**args, RUN_IN_BACKGROUND_PARAM: True}, context)
        if result.is_error:
            raise InvalidArguments(result.message or "")

    def definitions(self) -> list[ToolDefinition]:
        """Return what clients are told of the tools: all of them the same."""
        return [_definition(tool) for tool in self.tools.values()]


def is_required(tool: Tool) -> bool:
    """Does the tool only run as a task?"""
    return tool.descriptor().metadata.get(TASK_SUPPORT) == "required"


def _definition(tool: Tool) -> ToolDefinition:
    described = tool.descriptor()
    support: ToolExecution | None = None
    if isinstance(tool, BackgroundCapable):
        support = ToolExecution(task_support="required" if is_required(tool) else "optional")
    return ToolDefinition(
        name=described.id,
        title=described.name if described.name != described.id else None,
        description=described.description,
        input_schema=described.parameters,
        execution=support,
    )
