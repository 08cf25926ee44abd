"""The contract between an agent loop and its tools.

The loop shows the model each `Tool.descriptor`, calls ``validate_args`` and then ``execute`` with
what the model passed, and turns a `ToolError` into an error result with its text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar

import attrs

from ._json import JsonObject, JsonValue, NotJson, check_id, copy_json
from ._json_schema import schema_validator, violations

# ---- fields --------------------------------------------------------------------------------------


def _must_be(
    kind: type | tuple[type, ...], words: str
) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"{attribute.name} must be {words}, not {type(value).__name__}")

    return check


_TEXT = _must_be(str, "a string")
_TEXT_OR_NONE = _must_be((str, type(None)), "a string or None")
_OBJECT = _must_be(dict, "a dict")


def _check_id(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_id(value, attribute.name)


def _check_id_or_none(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_id(value, attribute.name)


def _blank_is_none(value: Any) -> Any:
    return (value.strip() or None) if isinstance(value, str) else value


# ---- what a tool is, is given and answers --------------------------------------------------------


def _no_parameters() -> JsonObject:
    return {"type": "object", "properties": {}}


@attrs.frozen
class ToolDescriptor:
    """What a model is told of a tool. ``parameters`` is the JSON Schema of its arguments object.

    Raises:
        TypeError, ValueError: a field is of the wrong kind; ``id`` or ``name`` is empty, too long
            or holds a control character.
    """

    id: str = attrs.field(validator=_check_id)
    name: str = attrs.field(validator=_check_id)
    description: str = attrs.field(validator=_TEXT)
    parameters: JsonObject = attrs.field(factory=_no_parameters, validator=_OBJECT)
    category: str | None = attrs.field(default=None, validator=_TEXT_OR_NONE)
    metadata: JsonObject = attrs.field(factory=dict[str, JsonValue], validator=_OBJECT)


class ToolStatus(StrEnum):
    """How a call went."""

    SUCCESS = "success"
    WARNING = "warning"
    PENDING = "pending"
    ERROR = "error"


def _tool_status(value: Any) -> ToolStatus:
    if not isinstance(value, str):
        raise TypeError(f"status must be a ToolStatus, not {type(value).__name__}")
    try:
        return ToolStatus(value)
    except ValueError:
        raise ValueError(f"status must be one of {', '.join(ToolStatus)}") from None


@attrs.frozen
class ToolResult:
    """The answer of a tool to its model: ``data`` is JSON, ``message`` a sentence.

    Raises:
        TypeError, ValueError: a field is of the wrong kind, ``status`` is no `ToolStatus`.
    """

    tool_name: str = attrs.field(validator=_TEXT)
    status: ToolStatus = attrs.field(converter=_tool_status)
    data: Any = None
    message: str | None = attrs.field(default=None, validator=_TEXT_OR_NONE)
    metadata: JsonObject = attrs.field(factory=dict[str, JsonValue], validator=_OBJECT)

    @classmethod
    def success(cls, tool_name: str, data: Any, message: str | None = None) -> ToolResult:
        """The tool did what it was asked for."""
        return cls(tool_name, ToolStatus.SUCCESS, data, message)

    @classmethod
    def warning(cls, tool_name: str, data: Any, message: str) -> ToolResult:
        """It did, but ``message`` should be known."""
        return cls(tool_name, ToolStatus.WARNING, data, message)

    @classmethod
    def pending(cls, tool_name: str, message: str) -> ToolResult:
        """It is not done yet; ``message`` says what it waits for."""
        return cls(tool_name, ToolStatus.PENDING, None, message)

    @classmethod
    def error(cls, tool_name: str, message: str, code: str | None = None) -> ToolResult:
        """It could not; with a ``code``, ``data`` carries it and the message begins with it."""
        if code is None:
            return cls(tool_name, ToolStatus.ERROR, None, message)
        for name, text in (("code", code), ("message", message)):
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{name} must be a string, not {type(text).__name__}")
        data = {"error": {"code": code, "message": message}}
        return cls(tool_name, ToolStatus.ERROR, data, f"[{code}] {message}")

    @property
    def is_success(self) -> bool:
        """True for success and warning."""
        return self.status in (ToolStatus.SUCCESS, ToolStatus.WARNING)

    @property
    def is_pending(self) -> bool:
        """True while the work is not done."""
        return self.status is ToolStatus.PENDING

    @property
    def is_error(self) -> bool:
        """True when the call failed."""
        return self.status is ToolStatus.ERROR


@attrs.frozen
class ToolCallContext:
    """Who makes a call. Ids are trimmed; a blank one is None.

    Args:
        call_id: The id of this call, for logs.
        source: Where it comes from, for logs, such as ``"tool:echo"``.
        thread_id: The conversation that will own what is started.
        run_id: The run that makes the call; the parent of what is started outside any task.
        agent_id: The agent that makes the call.
        idempotency_key: Calls of one owner with the same key start one task. Only starts have keys:
            a call that resumes a task records none, and repeated it may resume the task again.
        task_id: The id of the task that the call starts; None: a fresh one. Of no other call.

    Raises:
        TypeError, ValueError: a field is no string; an id is too long or holds a control character.
    """

    call_id: str = attrs.field(default="", validator=_TEXT)
    source: str = attrs.field(default="", validator=_TEXT)
    thread_id: str | None = attrs.field(
        default=None, converter=_blank_is_none, validator=_check_id_or_none
    )
    run_id: str | None = attrs.field(
        default=None, converter=_blank_is_none, validator=_check_id_or_none
    )
    agent_id: str | None = attrs.field(
        default=None, converter=_blank_is_none, validator=_check_id_or_none
    )
    idempotency_key: str | None = attrs.field(
        default=None, converter=_blank_is_none, validator=_check_id_or_none
    )
    task_id: str | None = attrs.field(
        default=None, converter=_blank_is_none, validator=_check_id_or_none
    )


def check_context(ctx: object) -> None:
    """Raise TypeError unless ``ctx`` is the context of a call."""
    if not isinstance(ctx, ToolCallContext):
        raise TypeError(f"ctx must be a ToolCallContext, not {type(ctx).__name__}")


# ---- errors that a tool raises -------------------------------------------------------------------


class ToolError(Exception):
    """A call that cannot be answered by a result. Its text begins with the prefix of its kind."""

    prefix: ClassVar[str] = ""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.prefix}{self.message}"


class InvalidArguments(ToolError):
    """The arguments do not fit; the model should pass others."""

    prefix = "Invalid arguments: "


class ExecutionFailed(ToolError):
    """The tool tried and failed."""

    prefix = "Execution failed: "


class Denied(ToolError):
    """The caller may not do that."""

    prefix = "Denied: "


class NotFound(ToolError):
    """What the arguments name does not exist."""

    prefix = "Not found: "


class InternalError(ToolError):
    """The tool itself is at fault."""

    prefix = "Internal error: "


# ---- the tool ------------------------------------------------------------------------------------


class Tool(ABC):
    """Something that a model can call. Subclasses need no ``super().__init__()``."""

    @abstractmethod
    def descriptor(self) -> ToolDescriptor:
        """Return what the model is told; the same at every call."""

    def validate_args(self, args: Any) -> None:
        """Check arguments by the JSON Schema of the descriptor; override to check more.

        Raises:
            InvalidArguments: every violation with its path, joined by ``"; "``.
            InternalError: the tool's schema is not valid.
        """
        try:
            plain = copy_json(args)
        except NotJson as error:
            raise InvalidArguments(str(error)) from None
        try:
            validator = schema_validator(self.descriptor().parameters)
        except ValueError as error:
            raise InternalError(f"invalid tool schema: {error}") from None
        text = violations(validator, plain)
        if text:
            raise InvalidArguments(text)

    @abstractmethod
    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        """Do it. Raises a `ToolError` when there is no result to answer with."""
