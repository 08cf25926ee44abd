"""`serve`: an MCP server of the shell, and of tools of one's own, on the database."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any, cast, final

import attrs
import trio

from .. import (
    BackgroundTaskManager,
    ManagerConfig,
    SqliteTaskStore,
    Tool,
    open_task_manager,
)
from ..mcp import (
    OwnerOf,
    Principal,
    build_server,
    chosen_owner,
    client_owner,
    principal_owner,
    serve_http,
    serve_stdio,
)
from ..mcp._owners import CLIENTS
from ..tools import GuardedShell
from ._session import CommandError, Exit, Session, UsageError, complain, said

_SHORTEST_TOKEN = 16
_NOTICES_S = 600
_LIMITS = {"deadline_s": "attempt_deadline_s"}  # where the manager has another name
# What commands need to find their programs, their user and a language: nothing that is a secret.
HARMLESS = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TMPDIR"),
    *("LANG", "LC_*", "TZ"),
)

log = logging.getLogger("trio_bgtasks.mcp")


@attrs.frozen(kw_only=True)
class Service:
    """What is served, and to whom; see the command's help."""

    http: str | None = None
    tokens: Path | None = None
    no_tokens: bool = False
    allowed_host: Sequence[str] = ()
    owner: str | None = None
    no_shell: bool = False
    tools: Sequence[str] = ()
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    root: Path | None = None
    env: Sequence[str] = ()
    config: ManagerConfig = attrs.field(factory=ManagerConfig)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Service:
        """Take the options of the command, those of the manager among them.

        Raises:
            UsageError: the manager cannot have one of them.
        """
        own = {field.name for field in attrs.fields(cls)}
        limits = {_LIMITS.get(name, name): options[name] for name in options.keys() - own}
        try:
            config = ManagerConfig(**limits)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return cls(config=config, **{name: options[name] for name in options.keys() & own})


def check_for_clients(service: Service, db: Path | None) -> None:
    """Refuse what no client could start from a folder of its choice.

    Raises:
        UsageError, CommandError: what is wrong, and what to write instead.
    """
    if service.http is not None:
        raise UsageError("clients start the server over stdio: leave out --http")
    files = [name.rpartition(":")[0] for name in service.tools]
    paths = [("--tools", Path(file)) for file in files if file.endswith(".py")]
    for option, path in (*paths, ("--root", service.root), ("--db", db)):
        if path is not None and not path.is_absolute():
            there = path.expanduser().absolute()
            raise UsageError(f"the client starts the server in some folder: {option} {there}")
    _tools(service, None)


async def serve(session: Session, service: Service) -> int:
    """Serve until the client goes (stdio), or until a signal; tasks are then stopped, not lost."""
    with redirect_stdout(sys.stderr):  # what a module prints is no message for the client
        tools = _tools(service, Path.cwd())
    # The SDK logs every host and session that it refuses, as long as they are.
    logging.getLogger("mcp").setLevel(logging.ERROR)
    http = None if service.http is None else _Http.of(service)
    if http is None and (service.tokens or service.no_tokens or service.allowed_host):
        raise UsageError("--tokens, --no-tokens and --allowed-host go with --http")
    async with (
        SqliteTaskStore.open(session.db) as store,
        open_task_manager(store, config=service.config) as manager,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_forget_notices, manager)
        try:
            server = build_server(manager, tools, owner_of=_owner_of(service))
        except ValueError as error:  # two of them have one id
            raise UsageError(str(error)) from None
        if http is None:
            await serve_stdio(server)
        else:
            await http.serve(server)
        nursery.cancel_scope.cancel()
    return Exit.COMPLETED


async def _forget_notices(manager: BackgroundTaskManager) -> None:
    """Acknowledge the notices of clients, now and then: they look themselves, nobody reads them."""
    while True:
        try:
            for owner in await manager.owners():
                while owner.startswith(CLIENTS) and await manager.take_notices(owner):
                    pass
        except Exception as error:  # noqa: BLE001 - a store may fail in any way
            log.warning("notices are not deleted yet: %s: %s", type(error).__name__, error)
        await trio.sleep(_NOTICES_S)


def _owner_of(service: Service) -> OwnerOf:
    if service.owner is not None:
        if service.tokens is not None:
            complain("warning: all names of --tokens have the same tasks, those of --owner")
        return chosen_owner(service.owner)
    return client_owner(Path.cwd()) if service.http is None else principal_owner


# ---- what is served ------------------------------------------------------------------------------


def _tools(service: Service, folder: Path | None) -> list[Tool]:
    tools: list[Tool] = []
    for pattern in service.env:
        if "=" in pattern:
            name = pattern.partition("=")[0]
            raise UsageError(f"--env takes names of variables that are set here: --env {name!r}")
    if not service.no_shell:
        env = {
            name: value for name, value in os.environ.items() if _is_handed_on(name, service.env)
        }
        try:
            shell = GuardedShell(
                allow=service.allow or None,
                deny=service.deny,
                root=service.root,
                env=env,
                supports_resume=True,
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        tools.append(shell)
    elif service.allow or service.deny or service.root is not None or service.env:
        raise UsageError("--allow, --deny, --root and --env are about the shell")
    for name in service.tools:
        tools += _loaded(name, folder)
    if not tools:
        raise UsageError("there is nothing to serve: name --tools, or leave out --no-shell")
    return tools


def _is_handed_on(name: str, more: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (*HARMLESS, *more))


def _loaded(name: str, folder: Path | None) -> list[Tool]:
    """Import ``module:attribute`` or ``file.py:attribute``; return the tools that are there.

    A module may be one of ``folder``. The attribute is a tool, several, or a function without
    parameters that returns them.
    """
    module, _, attribute = name.rpartition(":")
    if not module or not attribute:
        raise UsageError(f"--tools takes module:attribute or file.py:attribute, not {name!r}")
    try:
        found: Any = _module(module, folder)
        for part in attribute.split("."):
            found = getattr(found, part)
        if not isinstance(found, Tool) and callable(found):
            found = _called(found)
    except Exception as error:
        raise CommandError(f"cannot load {name}: {said(error)}") from error
    tools = list(cast("Iterable[object]", found)) if isinstance(found, Iterable) else [found]
    for tool in tools:
        if not isinstance(tool, Tool):
            raise CommandError(f"{name} is no Tool, but a {type(tool).__name__}")
    return cast("list[Tool]", tools)


def _called(function: Callable[..., Any]) -> object:
    """Return the tools that a function returns; a tool that was meant itself is told apart."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        whole = False
    else:
        whole = not inspect.iscoroutinefunction(function)
    if not whole:
        raise CommandError("it is a plain function: @background_tool makes a tool of one")
    return function()


def _module(name: str, folder: Path | None) -> ModuleType:
    file = Path(name).absolute() if name.endswith(".py") else None
    place = folder if file is None else file.parent
    if place is not None and str(place) not in sys.path:
        sys.path.append(str(place))  # the last, so that it hides no other module
    spec = None if file is None else importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- over HTTP -----------------------------------------------------------------------------------


@attrs.frozen
class _Http:
    host: str
    port: int
    tokens: TokensFile | None
    allowed_hosts: Sequence[str]

    @classmethod
    def of(cls, service: Service) -> _Http:
        """Read the options about HTTP."""
        address = service.http or ""
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or int(port) > 0xFFFF:
            raise UsageError(f"--http takes HOST:PORT, not {address!r}")
        if (service.tokens is None) is not service.no_tokens:
            raise UsageError(
                "--http needs --tokens FILE, or --no-tokens: then whoever can reach the port, each "
                "user of this machine for one, can run commands as you"
            )
        tokens = None if service.tokens is None else TokensFile(service.tokens)
        return cls(host, int(port), tokens, service.allowed_host)

    async def serve(self, server: Any) -> None:
        """Serve for ever; say where."""
        try:
            await serve_http(
                server,
                host=self.host,
                port=self.port,
                tokens=self.tokens,
                allowed_hosts=self.allowed_hosts,
                task_status=_Said(),
            )
        except ValueError as error:
            raise UsageError(str(error)) from None


class _Said(trio.TaskStatus[str]):
    """Says where the server is reached, once it is."""

    def started(self, value: str | None = None) -> None:
        complain(f"serving at {value}")


@final
class TokensFile:
    """Tokens as they stand in a file now: whoever is taken out of it is refused from then on.

    While the file cannot be read nobody comes in, and that is said once.

    Raises:
        CommandError: it cannot be read now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)  # before it is read: what changes meanwhile is seen later
        self._tokens = read_tokens(path)

    def __call__(self) -> Mapping[str, Principal]:
        """Return who may come."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._tokens = read_tokens(self._path)
            except CommandError as error:
                complain(f"nobody is let in: {error}")
                self._tokens = {}
        return self._tokens


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what tells one state of a file from another; None if there is no such file."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return (
        seen.st_dev,
        seen.st_ino,
        seen.st_mode,
        seen.st_size,
        seen.st_mtime_ns,
        seen.st_ctime_ns,
    )


def read_tokens(path: Path) -> dict[str, Principal]:
    """Read a file of bearer tokens: lines of ``NAME TOKEN``, and when it ends if it does.

    Raises:
        CommandError: others can read the file, or a line is wrong; no token is in the text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise CommandError(f"others can read the tokens: chmod 600 {path}")
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read the tokens in {path}: {error}") from None
    tokens: dict[str, Principal] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        wrong = _add(tokens, words)
        if wrong is not None:
            raise CommandError(f"{path}, line {number}: {wrong}")
    if not tokens:
        raise CommandError(f"there is no token in {path}")
    return tokens


def _add(tokens: dict[str, Principal], words: Sequence[str]) -> str | None:
    """Take one line; return what is wrong with it, which never names the token."""
    if len(words) not in (2, 3):
        return "a line is NAME TOKEN or NAME TOKEN END"
    name, token, *end = words
    if len(token) < _SHORTEST_TOKEN:
        return f"a token has at least {_SHORTEST_TOKEN} characters"
    if token in tokens:
        return "this token is somebody's already"
    try:
        ends = [datetime.fromisoformat(text) for text in end]
    except ValueError:  # it is not said what it is: columns may be mixed up
        return "END is a time such as 2030-01-31T12:00:00+00:00"
    try:
        until = [int(each.replace(tzinfo=each.tzinfo or UTC).timestamp()) for each in ends]
        tokens[token] = Principal(name, *until)
    except (OverflowError, ValueError):
        return "NAME is to be an id of 1 to 200 characters, END a time of our days"
    return None
