"""Serving any number of clients over HTTP, on Trio."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio

from .._json import check_id

if TYPE_CHECKING:
    from mcp.server.auth.provider import AccessToken
    from mcp.server.lowlevel import Server
    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/mcp"
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
# The settings of the SDK's authorization want one; it is shown to nobody.
_ISSUER = "http://localhost"


def _check_name(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_id(value, attribute.name)


@attrs.frozen
class Principal:
    """Who a bearer token stands for: the owner of tasks. ``expires_at``: seconds of the epoch."""

    name: str = attrs.field(validator=_check_name)
    expires_at: int | None = None


Tokens: TypeAlias = "Mapping[str, Principal] | Callable[[], Mapping[str, Principal]]"
"""Who may come, by bearer token; or what returns it, asked at each request, as it stands then."""


async def serve_http(
    server: Server[Any],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tokens: Tokens | None = None,
    allowed_hosts: Sequence[str] = (),
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve clients over streamable HTTP at ``http://HOST:PORT/mcp``, until cancelled.

    Cancelled it returns within a moment; tasks go on for as long as their manager does. A page in a
    browser cannot reach it: ``Host`` and ``Origin`` have to be known.

    Args:
        server: A server of the SDK; see `build_server`, and `principal_owner` for its owners.
        host: The address to listen at. Any but one of this machine's own needs ``tokens``.
        port: 0 for one that is free.
        tokens: Who may come, by bearer token, or what returns that at each request. None: all who
            can reach the address.
        allowed_hosts: Further names under which clients reach the server.
        task_status: Started with the URL.

    Raises:
        ValueError: others could reach it without a token.
        OSError: it cannot listen there.
    """
    if not tokens and not _is_loopback(host):
        raise ValueError(f"{host} can be reached from elsewhere: tokens are required")
    from ._connections import serve_connections  # noqa: PLC0415 - half a second

    name = f"[{host}]" if ":" in host else host
    app = http_app(server, tokens=tokens, allowed_hosts=(*_LOCAL, name, *allowed_hosts))
    await serve_connections(app, host, port, lambda url: task_status.started(url + PATH))


def http_app(
    server: Server[Any],
    *,
    tokens: Tokens | None = None,
    allowed_hosts: Sequence[str] = _LOCAL,
) -> Starlette:
    """Return the ASGI application of a built server, for a host of your own; serve it on Trio."""
    from mcp.server.auth.settings import AuthSettings  # noqa: PLC0415
    from mcp.server.transport_security import TransportSecuritySettings  # noqa: PLC0415

    from ._connections import Exchanges  # noqa: PLC0415

    hosts = [host.lower() for host in allowed_hosts]
    names = [name for host in hosts for name in (host, f"{host}:*")]
    security = TransportSecuritySettings(
        allowed_hosts=names,
        allowed_origins=[f"{scheme}://{name}" for scheme in ("http", "https") for name in names],
    )
    verifier = None if tokens is None else _Tokens(tokens)
    auth = AuthSettings.model_validate({"issuer_url": _ISSUER, "resource_server_url": None})
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        transport_security=security,
        auth=None if verifier is None else auth,
        token_verifier=verifier,
    )
    app.add_middleware(_HostsInLowerCase)
    app.add_middleware(Exchanges)
    return app


class _HostsInLowerCase:
    """A middleware of ASGI: in a host's name case is nothing, while the SDK compares letters."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [
                (name, value.lower() if name in (b"host", b"origin") else value)
                for name, value in scope["headers"]
            ]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


class _Tokens:
    """Knows tokens by their digest: looking one up takes no longer for a good guess."""

    def __init__(self, tokens: Tokens) -> None:
        self._now = tokens if callable(tokens) else lambda: tokens
        self._known: Mapping[str, Principal] | None = None
        self._principals: dict[bytes, Principal] = {}

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return whose token it is; None when nobody's. The SDK looks at its end."""
        from mcp.server.auth.provider import AccessToken  # noqa: PLC0415

        tokens = self._now()
        if tokens is not self._known:
            self._known = tokens
            self._principals = {_digest(token): principal for token, principal in tokens.items()}
        principal = self._principals.get(_digest(token))
        if principal is None:
            return None
        return AccessToken(
            token=_digest(token).hex(),
            client_id=principal.name,
            scopes=[],
            expires_at=principal.expires_at,
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
