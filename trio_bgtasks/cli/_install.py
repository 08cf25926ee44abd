"""`install`: the entry of this server in the configuration of a client of MCP."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import attrs

from ._session import CommandError, Exit, complain
from ._text import one_line
from ._views import say

_MODULE = "trio_bgtasks.cli"
Client: TypeAlias = Literal["claude-code", "claude-desktop", "cursor", "vscode"]


@attrs.frozen
class _Home:
    """Where a client of one user keeps its servers, and under which key."""

    path: Callable[[], Path]
    key: str = "mcpServers"
    typed: bool = False


def _application(*parts: str) -> Path:
    """Return a path below the folder of the settings of desktop applications."""
    if sys.platform == "darwin":
        return Path.home().joinpath("Library", "Application Support", *parts)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config").joinpath(*parts)


_HOMES: dict[Client, _Home] = {
    "claude-code": _Home(lambda: Path.home() / ".claude.json", typed=True),
    "claude-desktop": _Home(lambda: _application("Claude", "claude_desktop_config.json")),
    "cursor": _Home(lambda: Path.home() / ".cursor" / "mcp.json"),
    "vscode": _Home(lambda: _application("Code", "User", "mcp.json"), key="servers", typed=True),
}


def install(client: Client, *, name: str, arguments: Sequence[str], write: bool) -> int:
    """Print the entry, or write it into the client's file, of which a copy is kept."""
    home = _HOMES[client]
    # With -P nothing of the folder in which the client starts it is taken for a module of ours.
    args = ["-P", "-m", _MODULE, "serve", *arguments]
    entry = {"command": sys.executable, "args": args}
    if home.typed:
        entry = {"type": "stdio", **entry}
    path = home.path()
    if not write:
        say(json.dumps({home.key: {name: entry}}, indent=2))
        complain(f"this belongs into {path}; --write puts it there")
        return Exit.COMPLETED
    data, settings = _read(path)
    found = settings.setdefault(home.key, {})
    if not isinstance(found, dict):
        raise CommandError(f"{path}: {home.key!r} is no object; nothing was changed")
    servers = cast("dict[str, Any]", found)
    if servers.get(name) == entry:
        say(f"{one_line(str(path))} has it already")
        return Exit.COMPLETED
    if name in servers and _MODULE not in str(servers[name]):
        raise CommandError(f"{path} has another server {name!r}: choose a --name; nothing changed")
    servers[name] = entry
    new = _written(path, settings)
    backup = None if data is None else _keep(path, data)
    _replace(path, data, new)
    say(
        f"{one_line(str(path))} written"
        + (f"; as it was: {one_line(str(backup))}" if backup else "")
    )
    say(f"Restart {client} to see the server {one_line(name)!r}.")
    return Exit.COMPLETED


def _read(path: Path) -> tuple[bytes | None, dict[str, Any]]:
    """Return the file of a client, and the settings in it; none if there is no file."""
    try:
        data = path.read_bytes()
        text = data.decode()
    except FileNotFoundError:
        return None, {}
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {error}") from None
    settings: object = None
    with suppress(ValueError, RecursionError):
        settings = json.loads(text) if text.strip() else {}
    if not isinstance(settings, dict):
        raise CommandError(
            f"{path} is no plain JSON object (are there comments in it?); nothing was changed: add "
            "by hand what this command prints without --write"
        )
    return data, cast("dict[str, Any]", settings)


def _written(path: Path, settings: dict[str, Any]) -> bytes:
    """Return the text of the settings, which is to say what it said before."""
    try:
        text = json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:  # 1e999 is JSON, and no number of Python's
        raise CommandError(f"{path} cannot be written again: {error}; nothing changed") from None
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a character, which JSON can only escape
        return (json.dumps(settings, indent=2) + "\n").encode()


def _keep(path: Path, data: bytes) -> Path:
    """Write what the file was beside it, under a name that is free; return that."""
    number = 0
    while True:
        backup = path.with_name(f"{path.name}.bak{number or ''}")
        try:
            descriptor = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            number += 1
            continue
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        return backup


def _replace(path: Path, before: bytes | None, data: bytes) -> None:
    """Put ``data`` in the place of a file, in one step; a symbolic link goes on to lead to it."""
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(mode)
        unchanged = _read(path)[0] == before
        if unchanged:
            new.replace(target)
    except BaseException:
        new.unlink()
        raise
    if not unchanged:
        new.unlink()
        raise CommandError(f"{path} was changed meanwhile: close the client, then try again")
