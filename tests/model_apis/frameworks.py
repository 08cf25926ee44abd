"""Tools of pydantic-ai and openai-agents: real ones where the packages are installed, and fakes.

Both are made of the same functions. A fake has the attributes that the importer looks at, and
behaves as the real one was seen to.
"""

from __future__ import annotations

import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import attrs
import pytest

Function = Callable[..., Any]

_KINDS = {int: "integer", float: "number", str: "string"}


def _parameters(function: Function) -> dict[str, Any]:
    """Return the schema of a function with simple parameters."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "ctx"]
    hints = inspect.get_annotations(function, eval_str=True)
    return {
        "type": "object",
        "properties": {p.name: {"type": _KINDS[hints[p.name]]} for p in parameters},
        "required": [p.name for p in parameters if p.default is p.empty],
        "additionalProperties": False,
    }


class Framework(ABC):
    """How tools of one framework are made."""

    @abstractmethod
    def pydantic_ai(self, function: Function, **settings: Any) -> Any:
        """Return a Tool of pydantic-ai."""

    @abstractmethod
    def openai_agents(self, function: Function, **settings: Any) -> Any:
        """Return a FunctionTool of openai-agents."""


class Real(Framework):
    """Made by the packages themselves."""

    def pydantic_ai(self, function: Function, **settings: Any) -> Any:
        package = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed")
        if "ctx" in inspect.signature(function).parameters:
            annotated = {**inspect.get_annotations(function, eval_str=True)}
            function.__annotations__ = {**annotated, "ctx": package.RunContext[Any]}
        return package.Tool(function, **settings)

    def openai_agents(self, function: Function, **settings: Any) -> Any:
        package = pytest.importorskip("agents", reason="openai-agents is not installed")
        if "ctx" in inspect.signature(function).parameters:
            annotated = {**inspect.get_annotations(function, eval_str=True)}
            context = pytest.importorskip("agents.tool_context").ToolContext
            function.__annotations__ = {**annotated, "ctx": context[Any]}
        return package.function_tool(function, **settings)


# ---- fakes ---------------------------------------------------------------------------------------


@attrs.define
class _Context:
    """A RunContext, or a ToolContext, by the names that it was made with."""

    given: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.given[name]
        except KeyError:
            raise AttributeError(name) from None


def _context(**given: Any) -> _Context:
    return _Context(given)


@attrs.define
class _Validator:
    parameters: dict[str, Any]

    def validate_json(self, text: str) -> Any:
        args = json.loads(text)
        if "n" in args and args["n"] > 100:
            raise ValueError("n is too much")
        return args


@attrs.define
class _FunctionSchema:
    function: Function
    json_schema: dict[str, Any]
    takes_ctx: bool
    validator: _Validator

    async def call(self, args: dict[str, Any], ctx: Any) -> Any:
        value = self.function(*([ctx] if self.takes_ctx else []), **args)
        return await value if inspect.isawaitable(value) else value


@attrs.define(slots=False)
class _Tool:
    name: str
    description: str | None
    function_schema: _FunctionSchema


@attrs.define(slots=False)
class _FunctionTool:
    name: str
    description: str
    params_json_schema: dict[str, Any]
    __wrapped__: Function
    failure_error_function: Any = attrs.field(default=None)

    async def on_invoke_tool(self, ctx: Any, text: str) -> Any:
        function = self.__wrapped__
        first = [ctx] if "ctx" in inspect.signature(function).parameters else []
        try:
            return await function(*first, **json.loads(text))
        except Exception as error:  # noqa: BLE001 - as it does
            if self.failure_error_function is not None:
                return self.failure_error_function(ctx, error)
            ctx.run_config.tool_error_formatter(_context(error=error))
            return "An error occurred while running the tool. Please try again."


class Fake(Framework):
    """Made of what the importers look at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        modules: dict[str, dict[str, Any]] = {
            "pydantic_ai": {"RunContext": _context, "RunUsage": object},
            "agents": {"RunConfig": _context},
            "agents.tool_context": {"ToolContext": _context},
        }
        for name, names in modules.items():
            module = ModuleType(name)
            vars(module).update(names)
            monkeypatch.setitem(sys.modules, name, module)

    def pydantic_ai(self, function: Function, **settings: Any) -> Any:
        schema = _parameters(function)
        takes_ctx = "ctx" in inspect.signature(function).parameters
        fields = _FunctionSchema(function, schema, takes_ctx, _Validator(schema))
        tool = _Tool(function.__name__, inspect.getdoc(function), fields)
        vars(tool).update(settings)
        return tool

    def openai_agents(self, function: Function, **settings: Any) -> Any:
        text = inspect.getdoc(function) or ""
        tool = _FunctionTool(function.__name__, text, _parameters(function), function)
        if "timeout" in settings:
            settings["timeout_seconds"] = settings.pop("timeout")
        vars(tool).update(settings)
        return tool
