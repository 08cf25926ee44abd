"""An MCP server for background tools: any client of MCP can start, watch, cancel and resume tasks.

`serve_stdio` and `serve_http` serve the tools of a manager; `build_server` makes the server of the
SDK for a host of your own. Needs the extra ``mcp``; the SDK, which takes a second to import, is
imported when it is first used.
"""

import typing

from ._http import Principal as Principal
from ._http import http_app as http_app
from ._http import serve_http as serve_http
from ._owners import OwnerOf as OwnerOf
from ._owners import chosen_owner as chosen_owner
from ._owners import client_owner as client_owner
from ._owners import principal_owner as principal_owner
from ._stdio import serve_stdio as serve_stdio

if typing.TYPE_CHECKING:
    from ._server import build_server as build_server


def __getattr__(name: str) -> typing.Any:
    if name == "build_server":
        from ._server import build_server  # noqa: PLC0415 - it imports the SDK

        return build_server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
