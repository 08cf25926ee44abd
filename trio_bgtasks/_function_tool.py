"""`background_tool`: an async function with typed parameters and a docstring is a tool."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from copy import deepcopy
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeAlias, cast, get_type_hints, overload

import attrs
import msgspec
import trio

from ._executable import (
    TASK_ID_PARAM,
    Args,
    BackgroundExecutable,
    check_supports_resume,
    outcome_of_result,
)
from ._execution import BackgroundExecution
from ._json import JsonObject, NotJson, check_id, clone_json, copy_json
from ._json_schema import schema_validator
from ._records import Cancelled, Failed, Stopped, Success, TaskResult
from ._tool import (
    InvalidArguments,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
)

_Function: TypeAlias = Callable[..., Awaitable[Any]]


@overload
def background_tool(
    fn: _Function, /, *, supports_resume: bool = False, name: str | None = None
) -> BackgroundExecutable[Any]: ...


@overload
def background_tool(
    *, supports_resume: bool = False, name: str | None = None
) -> Callable[[_Function], BackgroundExecutable[Any]]: ...


def background_tool(
    fn: _Function | None = None, /, *, supports_resume: bool = False, name: str | None = None
) -> BackgroundExecutable[Any] | Callable[[_Function], BackgroundExecutable[Any]]:
    """Make a tool of an async function, for `BackgroundCapable`. A decorator, or a plain call.

    The schema comes from the parameters' types, the description from the docstring. Types are those
    of msgspec: JSON types, containers, Literal, enums, dataclasses, attrs classes, structs;
    ``Annotated[..., msgspec.Meta(description=..., ge=0)]`` describes and constrains. Arguments are
    checked by the schema, then converted strictly. A parameter annotated `BackgroundExecution` gets
    the running attempt and is not in the schema. What the function returns is the result; a
    `TaskResult` is the outcome as it is, a `ToolResult` ends the task as its status says: an error
    fails it, a pending one stops it.

    Args:
        fn: The function.
        supports_resume: May a stopped task of it be resumed? The function then begins again, with
            ``execution.checkpoint``.
        name: The tool's id, name and task type; by default the function's name.

    Raises:
        TypeError: ``fn`` is no async function, or a parameter cannot be an argument of a tool; the
            text says which and why.
        ValueError: the name is not usable.
    """
    if fn is None:
        return partial(_FunctionTool, supports_resume=supports_resume, name=name)
    return _FunctionTool(fn, supports_resume=supports_resume, name=name)


class _FunctionTool(BackgroundExecutable[msgspec.Struct]):
    """The tool of one function; ``prepared`` is its converted arguments."""

    task_type = "function"  # each instance has its own

    def __init__(self, fn: _Function, *, supports_resume: bool, name: str | None) -> None:
        is_function = isinstance(fn, FunctionType | MethodType)
        if not is_function or not inspect.iscoroutinefunction(fn):
            what = f"{type(fn).__name__} {getattr(fn, '__name__', '')}".rstrip()
            raise TypeError(f"background_tool needs an async function, not {what}")
        self.task_type = check_id(fn.__name__ if name is None else name, "name")
        check_supports_resume(supports_resume)
        self.supports_resume = supports_resume
        self.__wrapped__ = fn
        parameters = _typed_parameters(self.task_type, fn)
        injected = [p.name for p in parameters if p.annotation is BackgroundExecution]
        if len(injected) > 1:
            raise TypeError(f"{self.task_type}: one parameter may be the BackgroundExecution")
        self._execution_name = injected[0] if injected else None
        given = [p for p in parameters if p.name not in injected]
        if supports_resume and any(p.name == TASK_ID_PARAM for p in given):
            raise TypeError(
                f"{self.task_type}: with supports_resume the parameter {TASK_ID_PARAM!r} carries "
                "the id of the task to resume; rename yours"
            )
        self._arguments, schema = _arguments_of(self.task_type, given)
        self._descriptor = ToolDescriptor(
            self.task_type, self.task_type, inspect.getdoc(fn) or "", schema
        )

    def __repr__(self) -> str:
        return f"<background_tool {self.task_type}>"

    def descriptor(self) -> ToolDescriptor:
        """Return what the function says of itself."""
        old = self._descriptor
        return ToolDescriptor(old.id, old.name, old.description, clone_json(old.parameters))

    def validate_args(self, args: Any) -> None:
        """Check by the schema, then by conversion to the parameters' types."""
        super().validate_args(args)
        self._convert(args)

    def prepare_background(
        self,
        args: Args,
        ctx: ToolCallContext,  # noqa: ARG002
        /,
        *,
        is_resume: bool,  # noqa: ARG002
    ) -> msgspec.Struct:
        """Convert the arguments."""
        return self._convert(args)

    def _convert(self, args: Args) -> msgspec.Struct:
        try:
            return msgspec.convert(args, self._arguments, str_keys=True)
        except msgspec.ValidationError as error:
            raise InvalidArguments(str(error)) from None

    async def execute_background(
        self,
        task_id: str,  # noqa: ARG002
        args: Args,  # noqa: ARG002
        prepared: msgspec.Struct,
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,  # noqa: ARG002
        /,
    ) -> TaskResult:
        """Call the function."""
        arguments = {name: getattr(prepared, name) for name in prepared.__struct_fields__}
        if self._execution_name is not None:
            arguments[self._execution_name] = execution
        value = await self.__wrapped__(**arguments)
        if isinstance(value, Success | Failed | Cancelled | Stopped):
            return value
        if isinstance(value, ToolResult):
            return outcome_of_result(self, attrs.evolve(value, data=_as_json(value.data)))
        return Success(_as_json(value))


def _as_json(value: object) -> object:
    """Return dataclasses, times, sets and the like as JSON; the manager refuses what is none."""
    try:
        return msgspec.to_builtins(value, str_keys=True)
    except (TypeError, RecursionError):
        return value


def _typed_parameters(name: str, fn: _Function) -> list[inspect.Parameter]:
    """Return the parameters with their annotations resolved; refuse what has no name or type."""
    try:
        hints = get_type_hints(fn, include_extras=True)
    except (NameError, AttributeError) as error:
        raise TypeError(
            f"{name}: an annotation cannot be resolved: {error}; define or import it at module "
            "level, not under TYPE_CHECKING"
        ) from None
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"{name}: parameter '{parameter}' is {parameter.kind.description}; the arguments "
                "of a tool have names"
            )
        if parameter.name.startswith("__"):
            raise TypeError(
                f"{name}: the name of parameter {parameter.name!r} begins with two underscores; "
                "rename it"
            )
        if parameter.name not in hints:
            raise TypeError(f"{name}: parameter {parameter.name!r} needs a type annotation")
        parameters.append(parameter.replace(annotation=hints[parameter.name]))
    return parameters


def _arguments_of(
    name: str, parameters: list[inspect.Parameter]
) -> tuple[type[msgspec.Struct], JsonObject]:
    """Return the struct that arguments are converted to, and its JSON Schema."""
    fields: list[Any] = []
    defaults: JsonObject = {}
    for parameter in parameters:
        try:
            schema_validator(msgspec.json.schema(parameter.annotation))
        except (TypeError, ValueError) as error:
            why = str(error).splitlines()[-1]
            raise TypeError(
                f"{name}: the type of parameter {parameter.name!r} has no JSON schema: {why}"
            ) from None
        if parameter.default is parameter.empty:
            fields.append((parameter.name, parameter.annotation))
            continue
        default = msgspec.field(default_factory=partial(deepcopy, parameter.default))
        fields.append((parameter.name, parameter.annotation, default))
        try:
            defaults[parameter.name] = copy_json(_as_json(parameter.default))
        except NotJson:
            continue  # a default that no model could pass
    arguments = msgspec.defstruct(
        f"{name}_arguments", fields, kw_only=True, forbid_unknown_fields=True
    )
    (reference,), definitions = msgspec.json.schema_components(
        [arguments], ref_template="#/$defs/{name}"
    )
    schema = cast("dict[str, Any]", definitions.pop(reference["$ref"].rpartition("/")[2]))
    del schema["title"]
    for field, value in defaults.items():
        schema["properties"][field]["default"] = value
    if definitions:
        schema["$defs"] = definitions
    return arguments, schema
