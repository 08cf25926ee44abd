"""What our handlers share of the protocol: eras, capabilities, parameters, errors."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    Notification,
    RequestParams,
)
from mcp_types.jsonrpc import HEADER_MISMATCH
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from .._errors import UnknownTask
from .._json import JsonObject
from ._watch import Watch

log = logging.getLogger("trio_bgtasks.mcp")

Context: TypeAlias = ServerRequestContext[Watch, Any]

EXTENSION = "io.modelcontextprotocol/tasks"
LEGACY_VERSION = "2025-11-25"
"""The one version of the protocol that has tasks in its core."""

NOT_FOUND = "Failed to retrieve task: Task not found"


class TaskParams(RequestParams):
    """Of every method that names a task."""

    task_id: str


class UpdateParams(TaskParams):
    """Of ``tasks/update``."""

    input_responses: dict[str, Any]


class TaskPush(Notification[dict[str, Any], Literal["notifications/tasks"]]):
    """A whole task, to whoever listens for it. Of a model's fields the SDK would drop nulls."""

    method: Literal["notifications/tasks"] = "notifications/tasks"
    params: dict[str, Any]


class StatusPush(Notification[dict[str, Any], Literal["notifications/tasks/status"]]):
    """The status of a task, to the client that started it; of 2025-11-25."""

    method: Literal["notifications/tasks/status"] = "notifications/tasks/status"
    params: dict[str, Any]


def is_modern(ctx: Context) -> bool:
    """Is the request of an era that has the extension?"""
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


def declares_extension(ctx: Context) -> bool:
    """Did the client declare, with this request, that it takes tasks as answers?"""
    declared = ctx.session.client_capabilities
    return is_modern(ctx) and EXTENSION in ((declared and declared.extensions) or {})


def require_extension(ctx: Context) -> None:
    """Refuse a request of a client that did not declare the extension."""
    require_client_extension(ctx, EXTENSION)


def can_answer(ctx: Context) -> bool:
    """Can the client show its user a form?"""
    declared = ctx.session.client_capabilities
    elicitation = None if declared is None else declared.elicitation
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def check_name_header(ctx: Context, task_id: str) -> None:
    """Refuse a request whose ``Mcp-Name`` header names another task; one without it is taken."""
    if ctx.request is None:
        return
    header = ctx.request.headers.get(MCP_NAME_HEADER)
    if header is not None and decode_header_value(header) != task_id:
        text = f"{MCP_NAME_HEADER} header does not match the request body's 'taskId' parameter"
        raise MCPError(HEADER_MISMATCH, text)


def unknown_method(ctx: Context) -> MCPError:
    """Return the answer for a method that this era does not have."""
    return MCPError(METHOD_NOT_FOUND, "Method not found", ctx.method)


def failure(error: JsonObject) -> MCPError:
    """Return the JSON-RPC error that a failed task ended with, to be raised."""
    fields: dict[str, Any] = error
    return MCPError(fields["code"], fields["message"], fields.get("data"))


def unknown_task() -> MCPError:
    """Return the answer for the id of no task, and for that of somebody else's: the same."""
    return MCPError(INVALID_PARAMS, NOT_FOUND)


@contextmanager
def task_errors() -> Generator[None, None, None]:
    """Turn what the manager raises into answers that tell nothing of others' tasks."""
    try:
        yield
    except MCPError:
        raise
    except UnknownTask:
        raise unknown_task() from None
    except Exception as error:
        log.exception("a request about a task failed")
        raise MCPError(INTERNAL_ERROR, "The task could not be looked up") from error
