"""Whose tasks a client sees: one owner thread for each client of stdio, each principal of HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from .._json import MAX_ID, check_id

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext

OwnerOf: TypeAlias = "Callable[[ServerRequestContext[Any, Any]], str]"
"""Returns the owner thread of whoever makes a request."""

CLIENTS = "mcp:"
"""How the owner threads of clients and principals begin."""
_DIGEST = 32


def chosen_owner(owner: str) -> OwnerOf:
    """Return ``owner`` for every client.

    Raises:
        TypeError, ValueError: it cannot be an owner thread.
    """
    check_id(owner, "owner")
    return lambda _: owner


def client_owner(directory: Path) -> OwnerOf:
    """Tell clients apart by name and directory, so that each finds its tasks when it comes again.

    The name is what the client says of itself: that keeps clients apart, not enemies. Whoever can
    start this server with its database could read that, too.
    """

    def owner(ctx: ServerRequestContext[Any, Any]) -> str:
        params = ctx.session.client_params
        name = "" if params is None else params.client_info.name
        return _owner("stdio", name, str(directory))

    return owner


def principal_owner(ctx: ServerRequestContext[Any, Any]) -> str:
    """Return the owner thread of the principal whose token came with the request.

    Without tokens all who can reach the server are one.
    """
    user = None if ctx.request is None else ctx.request.scope.get("user")
    token = getattr(user, "access_token", None)
    return f"{CLIENTS}http" if token is None else _owner("http", token.client_id)


def _owner(*parts: str) -> str:
    """Return an owner thread that no other parts have; readable, if it is short enough."""
    text = CLIENTS + ":".join(quote(part, safe="/ ", errors="surrogatepass") for part in parts)
    if len(text) <= MAX_ID and text == text.strip():
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
    return f"{text[: MAX_ID - _DIGEST - 1].strip()}#{digest}"
