"""`serve`: the server that a client of MCP starts, or reaches over HTTP, as a real process."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from mcp import Client, StdioServerParameters
from trio.testing import MockClock

from tests.cli.command import PROGRAM, Cli, environment
from tests.processes import PATIENCE_S, until
from trio_bgtasks import (
    MemoryTaskStore,
    Success,
    TaskResult,
    TaskStatus,
    Tool,
    ToolDescriptor,
    ToolResult,
    open_task_manager,
)
from trio_bgtasks._outcome import leaves
from trio_bgtasks.cli import _serve
from trio_bgtasks.cli._serve import Service, read_tokens
from trio_bgtasks.cli._session import CommandError, Session, UsageError
from trio_bgtasks.mcp import Principal
from trio_bgtasks.testing import FaultyStore
from trio_bgtasks.testing._processes import MARK

SERVE = ("serve", "--env", MARK)  # the test looks for the processes that have it
TOKEN = "a-token-of-the-tests-only-"


def tokens_file(folder: Path, *lines: str, mode: int = 0o600) -> Path:
    """Write a file of tokens."""
    path = folder / "tokens"
    path.write_text("\n".join(lines))
    path.chmod(mode)
    return path


# ---- with a real client --------------------------------------------------------------------------


async def test_a_client_that_comes_again_finds_its_tasks(cli: Cli, tmp_path: Path) -> None:
    """A command in the background ends with its server as stopped, and can be resumed."""
    server = StdioServerParameters(
        command=PROGRAM[0],
        args=[*PROGRAM[1:], *SERVE, "--root", str(tmp_path), "--deny", "*forbidden*"],
        env=environment() | {"SECRET_KEY": "x", "TRIO_BGTASKS_DB": str(cli.db)},
    )
    with trio.fail_after(PATIENCE_S):
        async with Client(server) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {
                *("shell", "task_status", "task_output", "task_cancel")
            }
            seen = await client.call_tool("shell", {"command": 'pwd; echo "${SECRET_KEY:-none}"'})
            assert not seen.is_error
            denied = await client.call_tool("shell", {"command": "forbidden"})
            assert denied.is_error
            call = {"command": "echo here; sleep 1000", "run_in_background": True}
            started = await client.call_tool("shell", call)
            task_id = (started.structured_content or {})["task_id"]
            await until(lambda: cli.sleeping() == 1)
        assert cli.sleeping() == 0
        async with Client(server) as client:
            listed = await client.call_tool("task_status", {})
            tasks = {task["task_id"]: task for task in (listed.structured_content or {})["tasks"]}
            assert tasks[task_id]["status"] == "stopped"
            (first,) = (task["task_id"] for task in tasks.values() if task["task_id"] != task_id)
            log = await client.call_tool("task_output", {"task_id": first})
            assert (log.structured_content or {})["log"]["text"] == f"{tmp_path}\nnone\n"
    async with cli.manager() as manager:
        record = await manager.find(task_id)
        assert record is not None
        assert record.status is TaskStatus.STOPPED
        assert record.supports_resume
        assert record.owner_thread_id.startswith("mcp:stdio:")


async def test_an_owner_that_was_chosen_has_the_tasks(cli: Cli) -> None:
    """Those of `serve --owner` are those of the command with the same owner, whoever the client is."""
    server = StdioServerParameters(
        command=PROGRAM[0],
        args=[*PROGRAM[1:], *SERVE, "--owner", "me"],
        env=environment() | {"TRIO_BGTASKS_DB": str(cli.db)},
    )
    with trio.fail_after(PATIENCE_S):
        async with Client(server) as client:
            await client.call_tool("shell", {"command": "true"})
    listed = await cli("--owner", "me", "ls", "--json")
    assert [task["status"] for task in listed.json["tasks"]] == ["completed"]


async def test_an_answer_that_cannot_be_written_is_an_error(cli: Cli) -> None:
    """A full disk is told as what it is: no client that is gone."""
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    with trio.fail_after(PATIENCE_S):
        async with await trio.open_file("/dev/full", "wb") as full:
            process = await trio.lowlevel.open_process(
                [*PROGRAM, *SERVE],
                stdin=subprocess.PIPE,
                stdout=full.fileno(),
                stderr=subprocess.PIPE,
                env=environment() | {"TRIO_BGTASKS_DB": str(cli.db)},
            )
        assert process.stdin is not None
        assert process.stderr is not None
        async with process.stdin, process.stderr:
            await process.stdin.send_all(json.dumps(ping).encode() + b"\n")
            said = b"".join([chunk async for chunk in process.stderr])
            assert await process.wait() == 1
    assert said == b"trio-bgtasks: OSError: [Errno 28] No space left on device\n"


def test_one_owner_for_several_tokens_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who gave them names may have wanted them apart."""
    service = Service(owner="me", http="127.0.0.1:0", tokens=tmp_path / "tokens")
    owner_of: Any = _serve._owner_of(service)
    assert owner_of("any client") == "me"
    assert "all names of --tokens have the same tasks" in capsys.readouterr().err


async def test_over_http(cli: Cli, tmp_path: Path) -> None:
    """Who has a token is its principal; SIGTERM ends the server, and what it ran is stopped."""
    path = tokens_file(tmp_path, "# who may come", "", f"ann {TOKEN}", f"bob {TOKEN}b 2001-01-01")
    async with cli.running(*SERVE, "--http", "127.0.0.1:0", "--tokens", str(path)) as run:
        await until(lambda: b"serving at" in run.errors or run.ended.is_set())
        url = run.errors.decode().split("serving at ")[1].strip()
        call = {"command": "sleep 1000", "run_in_background": True}
        answers = [
            await trio.to_thread.run_sync(_call, url, token, call)
            for token in (None, "wrong", f"{TOKEN}b", TOKEN)
        ]
        assert [status for status, _ in answers] == [401, 401, 401, 200]
        task_id: str = answers[-1][1]["result"]["structuredContent"]["task_id"]
        await until(lambda: cli.sleeping() == 1)
        run.process.send_signal(signal.SIGTERM)
        done = await run.end()
        assert done.code == 128 + signal.SIGTERM
        assert TOKEN not in done.errors
        assert task_id not in done.errors
    assert cli.sleeping() == 0
    async with cli.manager() as manager:
        record = await manager.find(task_id)
        assert record is not None
        assert (record.status, record.owner_thread_id) == (TaskStatus.STOPPED, "mcp:http:ann")


def _call(url: str, token: str | None, arguments: dict[str, Any]) -> tuple[int, Any]:
    """Call the shell over a connection of its own."""
    address, _, path = url.removeprefix("http://").partition("/")
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "shell", "arguments": arguments, "_meta": meta}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "shell",
    }
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    try:
        connection.request("POST", f"/{path}", json.dumps(message), headers)
        response = connection.getresponse()
        body = response.read().decode()
    finally:
        connection.close()
    if response.status != 200:
        return response.status, None
    return 200, json.loads(body.split("data: ", 1)[1] if body.startswith("event") else body)


# ---- what it is told -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "words"),
    [
        (Service(no_shell=True), "there is nothing to serve"),
        (Service(no_shell=True, allow=("x",)), "--allow, --deny, --root and --env are about"),
        (Service(no_shell=True, env=("x",)), "--allow, --deny, --root and --env are about"),
        (
            Service(root=Path("no such place")),
            "root is no directory",
        ),
        (
            Service(no_shell=True, tools=(f"{__name__}:quiet", f"{__name__}:quiet")),
            "two tools have the id",
        ),
        (
            Service(env=("KEY=secret",)),
            "--env takes names of variables that are set here: --env 'KEY'",
        ),
        (
            Service(tools=("module",)),
            "--tools takes module:attribute or file.py:attribute, not 'module'",
        ),
        (Service(tokens=Path("x")), "go with --http"),
        (Service(no_tokens=True), "go with --http"),
        (Service(allowed_host=("x",)), "go with --http"),
        *(
            (Service(http=address, no_tokens=True), "--http takes HOST:PORT")
            for address in ("", "8000", ":8000", "host:", "host:x", "host:65536", "host:-1")
        ),
        (Service(http="127.0.0.1:0"), "--http needs --tokens FILE, or --no-tokens"),
        (Service(http="h:0", tokens=Path("x"), no_tokens=True), "--http needs --tokens FILE, or"),
        (Service(http="0.0.0.0:0", no_tokens=True), "tokens are required"),
    ],
)
async def test_what_does_not_go_together(service: Service, words: str, tmp_path: Path) -> None:
    """It is a usage error that names the options."""
    with pytest.raises((UsageError, ExceptionGroup)) as found:
        await _serve.serve(Session(tmp_path / "tasks.db", json=False), service)
    (error,) = leaves(found.value)
    assert isinstance(error, UsageError)
    assert words in str(error)


async def test_notices_of_clients_are_acknowledged(
    store: MemoryTaskStore, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody reads them, so they would pile up for ever; those of others are left; a store may fail."""
    assert autojump_clock is not None
    broken = FaultyStore(store)

    async def left() -> list[str]:
        owners = ("mcp:http:ann", "mcp:x", "thread")
        return [owner for owner in owners if await store.notices(owner)]

    async with open_task_manager(broken) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(_serve._forget_notices, manager)
        for wave in range(2):
            for owner in ("mcp:http:ann", "mcp:x", "thread"):
                await manager.spawn(owner, "t", "", _done)
            await trio.sleep(1)
            assert len(await left()) == 3
            if wave == 0:
                broken.break_down("owners")
                await trio.sleep(601)
                assert "not deleted yet" in caplog.text
                broken.repair()
            await trio.sleep(600)
            assert await left() == ["thread"]
        nursery.cancel_scope.cancel()


async def _done(_: trio.CancelScope) -> TaskResult:
    return Success()


def test_hosts_are_read_as_urls_have_them() -> None:
    """IPv6 in brackets."""
    http = _serve._Http.of(Service(http="[::1]:80", no_tokens=True))
    assert (http.host, http.port, http.tokens) == ("::1", 80, None)


class Quiet(Tool):
    """A tool that cannot run in the background."""

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor("quiet", "quiet", "Say nothing.")

    async def execute(self, args: Any, ctx: Any) -> ToolResult:
        raise NotImplementedError


quiet = Quiet()
several = (Quiet(), Quiet())
nothing = object()


def failing() -> Tool:
    """Fail to make a tool."""
    raise LookupError("not configured")


@pytest.mark.parametrize(("name", "count"), [("quiet", 1), ("several", 2), ("Quiet", 1)])
def test_tools_of_ones_own(name: str, count: int) -> None:
    """A tool, several, or what returns them; of a module that the folder has, or Python."""
    tools = _serve._tools(Service(no_shell=True, tools=(f"{__name__}:{name}",)), None)
    assert [type(tool) for tool in tools] == [Quiet] * count


def test_a_module_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found, as with ``python -m``."""
    (tmp_path / "my_own_tools.py").write_text(f"from {__name__} import quiet\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for _ in range(2):
        (tool,) = _serve._loaded("my_own_tools:quiet", tmp_path)
        assert tool is quiet
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found wherever the server is started, and not taken for a module of the same name."""
    file = tmp_path / "json.py"
    file.write_text(f"import beside\nfrom {__name__} import quiet\n")
    (tmp_path / "beside.py").touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tool,) = _serve._loaded(f"{file}:quiet", None)
    assert tool is quiet
    monkeypatch.chdir(tmp_path)
    (tool,) = _serve._loaded("json.py:quiet", None)
    assert tool is quiet
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:x", "ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{__name__}:no", "AttributeError"),
        (f"{__name__}:failing", "LookupError: not configured"),
        (f"{__name__}:nothing", "is no Tool, but a object"),
        (f"{__name__}:TOKEN", "is no Tool, but a str"),
        (f"{__name__}:_done", "it is a plain function: @background_tool makes a tool of one"),
        (f"{__name__}:tokens_file", "it is a plain function"),
        ("no_such_file.py:x", "FileNotFoundError"),
    ],
)
def test_tools_that_cannot_be_had(name: str, words: str) -> None:
    """The error names them, and what was wrong."""
    with pytest.raises(CommandError) as found:
        _serve._loaded(name, None)
    assert words in str(found.value)
    assert name in str(found.value)


def test_commands_see_what_is_harmless_and_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else of the server's environment, where a client keeps its keys."""
    for name in ("LC_ALL", "API_KEY", "APP_ONE", "APP_TWO", "LD_PRELOAD_X", "PATHS"):
        monkeypatch.setenv(name, "x")
    (shell,) = _serve._tools(Service(env=("APP_*",)), None)
    env = shell._env  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    assert env["PATH"] == os.environ["PATH"]
    assert {"LC_ALL", "APP_ONE", "APP_TWO"} <= env.keys()
    assert not {"API_KEY", "LD_PRELOAD_X", "PATHS"} & env.keys()


# ---- tokens --------------------------------------------------------------------------------------


def test_who_the_tokens_are(tmp_path: Path) -> None:
    """A line each; one may end at a time, in UTC unless it says otherwise."""
    lines = (
        "  # a comment",
        f"ann {TOKEN}1",
        f"\tann  {TOKEN}2  2030-01-02T03:04:05+01:00",
        f"bob {TOKEN}3 2030-01-02",
    )
    assert read_tokens(tokens_file(tmp_path, *lines)) == {
        f"{TOKEN}1": Principal("ann"),
        f"{TOKEN}2": Principal("ann", 1893549845),
        f"{TOKEN}3": Principal("bob", 1893542400),
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("# nobody", "there is no token in"),
        (TOKEN, "line 1: a line is NAME TOKEN or NAME TOKEN END"),
        (f"ann {TOKEN} 2030-01-02 x", "line 1: a line is NAME TOKEN or NAME TOKEN END"),
        ("ann short", "line 1: a token has at least 16 characters"),
        (f"ann {TOKEN}\nbob {TOKEN}", "line 2: this token is somebody's already"),
        (f"ann {TOKEN} tomorrow", "line 1: END is a time such as"),
        (f"ann 2030-01-31T12:00:00+00:00 {TOKEN}", "line 1: END is a time such as"),
        (f"{'x' * 201} {TOKEN}", "line 1: NAME is to be an id of 1 to 200 characters"),
    ],
)
def test_lines_that_are_wrong(line: str, words: str, tmp_path: Path) -> None:
    """The error names the line, and never the token."""
    with pytest.raises(CommandError) as found:
        read_tokens(tokens_file(tmp_path, line))
    assert words in str(found.value)
    assert TOKEN not in str(found.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_read(mode: int, tmp_path: Path) -> None:
    """Is refused, with what to do."""
    path = tokens_file(tmp_path, f"ann {TOKEN}", mode=mode)
    with pytest.raises(CommandError, match=f"chmod 600 {path}"):
        read_tokens(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Is named."""
    with pytest.raises(CommandError, match="cannot read the tokens in"):
        read_tokens(tmp_path / "none")
    path = tokens_file(tmp_path)
    path.write_bytes(b"\xff")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(CommandError, match="cannot read the tokens in"):
        read_tokens(path)
