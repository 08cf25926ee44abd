"""Tools of other frameworks: their schema and their call, without the framework's loop."""

from __future__ import annotations

import inspect
import json
import math
from abc import abstractmethod
from importlib import import_module
from typing import Any

import attrs
import msgspec
import trio

from .._executable import Args, BackgroundExecutable
from .._execution import BackgroundExecution
from .._json import JsonObject, check_id, clone_json, json_object
from .._records import Failed, Success, TaskResult
from .._tool import InvalidArguments, ToolCallContext, ToolDescriptor


def from_pydantic_ai(tool: Any, *, deps: Any = None) -> BackgroundExecutable[Any]:
    """Make a tool for `BackgroundCapable` of a ``Tool`` of pydantic-ai.

    Its schema, its validation and its function are used as they are, under Trio: an async function
    runs on the loop and must not need asyncio, any other in a thread. What it returns is the
    result, what it raises (``ModelRetry``, too) the error. ``timeout`` ends it, as failed.

    A function that takes a ``RunContext`` gets one with ``deps``, the tool's name and the call's
    id. There is no run of an agent around it: ``model`` is None, ``messages`` are empty.

    Args:
        tool: The tool.
        deps: What the function finds in ``ctx.deps``, in every call.

    Raises:
        TypeError: ``tool`` is no such object.
        ValueError: the tool has what would silently not happen here (``requires_approval``,
            ``prepare``, ``args_validator``), or its name is not usable.
    """
    _check_shape(tool, "a Tool of pydantic-ai", ("name", "description", "function_schema"))
    _refuse(tool, requires_approval=False, prepare=None, args_validator=None)
    return _PydanticAITool(tool, deps)


def from_openai_agents(tool: Any, *, context: Any = None) -> BackgroundExecutable[Any]:
    """Make a tool for `BackgroundCapable` of a ``FunctionTool`` of openai-agents.

    Its schema and its call are used as they are, under Trio: the function must be async, and not
    need asyncio. What it returns is the result. What it raises is the error; only where the tool
    has a ``failure_error_function`` of its own, the text that this returns is the result, as it is
    there. ``timeout_seconds`` ends it, as failed.

    A function that takes the context gets a ``ToolContext`` with ``context``, the tool's name, the
    call's id and its arguments. There is no run of an agent around it.

    Args:
        tool: The tool.
        context: What the function finds in ``ctx.context``, in every call.

    Raises:
        TypeError: ``tool`` is no such object, or of a function that is not async: openai-agents
            runs those by asyncio.
        ValueError: the tool has what would silently not happen here (``needs_approval``,
            ``is_enabled``, guardrails), or its name is not usable.
    """
    shape = ("name", "description", "params_json_schema", "on_invoke_tool")
    _check_shape(tool, "a FunctionTool of openai-agents", shape)
    _refuse(tool, needs_approval=False, is_enabled=True)
    _refuse(tool, tool_input_guardrails=None, tool_output_guardrails=None)
    function = getattr(tool, "__wrapped__", None)
    if function is not None and not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise TypeError(
            f"tool {tool.name!r} is of a function that is not async, which openai-agents runs by "
            "asyncio; make it async"
        )
    return _OpenAIAgentsTool(tool, context)


def _check_shape(tool: object, what: str, names: tuple[str, ...]) -> None:
    if not all(hasattr(tool, name) for name in names):
        raise TypeError(f"tool must be {what}, not {type(tool).__name__}")


def _refuse(tool: Any, **harmless: object) -> None:
    """Refuse a tool with a setting that only its own framework heeds."""
    for name, value in harmless.items():
        if getattr(tool, name, value) not in (value, []):
            raise ValueError(
                f"tool {tool.name!r} has {name!r}, which only its own framework heeds; do that in "
                "the function, or with the hooks of a BackgroundExecutable of your own"
            )


# ---- the tools -----------------------------------------------------------------------------------


@attrs.frozen
class _Prepared:
    args: Any
    call_id: str


class _Imported(BackgroundExecutable[_Prepared]):
    """What both have in common: ``timeout_s`` is the tool's own."""

    task_type = "imported"  # each instance has its own

    def __init__(self, tool: Any, parameters: Any, timeout_s: float | None) -> None:
        self.task_type = check_id(tool.name, "the name of a tool")
        schema = json_object(parameters, f"the parameters of tool {self.task_type!r}")
        self._descriptor = ToolDescriptor(
            self.task_type, self.task_type, tool.description or "", schema
        )
        self._tool = tool
        self._timeout_s = timeout_s

    def descriptor(self) -> ToolDescriptor:
        """Return what the tool says of itself."""
        schema: JsonObject = clone_json(self._descriptor.parameters)
        return attrs.evolve(self._descriptor, parameters=schema)

    def prepare_background(
        self,
        args: Args,
        ctx: ToolCallContext,
        /,
        *,
        is_resume: bool,  # noqa: ARG002
    ) -> _Prepared:
        """Keep what the call needs: the arguments as the function takes them, and the id."""
        return _Prepared(self._converted(args), ctx.call_id)

    def _converted(self, args: Args) -> Any:
        return args

    async def execute_background(
        self,
        task_id: str,  # noqa: ARG002
        args: Args,  # noqa: ARG002
        prepared: _Prepared,
        execution: BackgroundExecution,  # noqa: ARG002
        cancel_scope: trio.CancelScope,  # noqa: ARG002
        /,
    ) -> TaskResult:
        """Call the function."""
        limit = math.inf if self._timeout_s is None else self._timeout_s
        with trio.move_on_after(limit):
            return Success(_as_json(await self._call(prepared)))
        return Failed(f"the tool did not end within {limit:g} s")

    @abstractmethod
    async def _call(self, prepared: _Prepared) -> Any: ...


class _PydanticAITool(_Imported):
    def __init__(self, tool: Any, deps: Any) -> None:
        schema = tool.function_schema
        super().__init__(tool, schema.json_schema, getattr(tool, "timeout", None))
        self._schema = schema
        self._deps = deps
        # Who has made the tool has the package.
        self._package = import_module("pydantic_ai") if schema.takes_ctx else None

    def __repr__(self) -> str:
        return f"<from_pydantic_ai {self.task_type}>"

    def validate_args(self, args: Any) -> None:
        """Check by the schema, then by the validation of the function's types."""
        super().validate_args(args)
        self._converted(args)

    def _converted(self, args: Args) -> Any:
        try:
            return self._schema.validator.validate_json(json.dumps(args))
        except ValueError as error:
            raise InvalidArguments(str(error)) from None

    async def _call(self, prepared: _Prepared) -> Any:
        context = None
        if self._package is not None:
            context = self._package.RunContext(
                deps=self._deps,
                model=None,
                usage=self._package.RunUsage(),
                tool_call_id=prepared.call_id,
                tool_name=self.task_type,
            )
        value = await self._schema.call(prepared.args, context)
        # A ``ToolReturn``: what else it holds is not the result.
        is_wrapped = getattr(value, "kind", None) == "tool-return"
        return value.return_value if is_wrapped else value


class _OpenAIAgentsTool(_Imported):
    def __init__(self, tool: Any, context: Any) -> None:
        timeout_s = getattr(tool, "timeout_seconds", None)
        super().__init__(tool, tool.params_json_schema, timeout_s)
        self._context = context
        # Who has made the tool has the package.
        self._new_context = import_module("agents.tool_context").ToolContext
        self._new_config = import_module("agents").RunConfig

    def __repr__(self) -> str:
        return f"<from_openai_agents {self.task_type}>"

    async def _call(self, prepared: _Prepared) -> Any:
        # By default the call answers an error with a text that says nothing; this is told of it.
        errors: list[Exception] = []

        def keep(failure: Any) -> None:
            errors.append(failure.error)

        text = json.dumps(prepared.args)
        context = self._new_context(
            context=self._context,
            tool_name=self.task_type,
            tool_call_id=prepared.call_id,
            tool_arguments=text,
            run_config=self._new_config(tool_error_formatter=keep),
        )
        value = await self._tool.on_invoke_tool(context, text)
        for error in errors:
            raise error
        return value


def _as_json(value: object) -> object:
    """Return models, dataclasses, times and the like as JSON; the manager refuses what is none."""
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_dump)
    except (TypeError, RecursionError):
        return value


def _dump(value: Any) -> Any:
    if not hasattr(value, "model_dump"):
        raise TypeError
    return value.model_dump(mode="json")
