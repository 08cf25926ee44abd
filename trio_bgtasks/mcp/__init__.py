"""Background tools over MCP: a server for any client, and the tools of any server as ours.

`serve_stdio` and `serve_http` serve the tools of a manager; `build_server` makes the server of the
SDK for a host of your own. `remote_tools` gives the tools of another server, each a `RemoteTool`.
Needs the extra ``mcp``; the SDK, which takes a second to import, is imported when it is first used.
"""

import importlib
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
    from ._remote import RemoteTool as RemoteTool
    from ._remote import remote_client as remote_client
    from ._remote import remote_tools as remote_tools
    from ._server import build_server as build_server

_LAZY = {
    "RemoteTool": "_remote",
    "build_server": "_server",
    "remote_client": "_remote",
    "remote_tools": "_remote",
}


def __getattr__(name: str) -> typing.Any:
    if name in _LAZY:  # it imports the SDK
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
