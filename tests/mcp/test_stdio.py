"""Over stdio, with real processes: what is said, how it ends, what is left."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio
from mcp import Client, StdioServerParameters

from tests.mcp.wire import TASKS
from tests.processes import until
from trio_bgtasks import SqliteTaskStore, TaskStatus, open_task_manager
from trio_bgtasks.mcp import _stdio

_NEARLY_FULL = 30_000  # a pipe has 16 pages, and each write begins a new one
PROMPT_S = 5  # the deadline for an end that is prompt; the machine may be busy
COMMAND = (sys.executable, "-m", "tests.mcp.stdio_server")
ROOT = Path(__file__).parents[2]


@attrs.define(eq=False)
class Speaker:
    """Speaks to a server in lines."""

    process: subprocess.Popen[bytes]
    number: int = 0

    def send(self, line: bytes) -> None:
        """Send a line as it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def request(self, method: str, **params: Any) -> Any:
        """Send a request of 2026-07-28; return its answer."""
        self.number += 1
        self.post(self.number, method, **params)
        return self.line()

    def post(self, number: int, method: str, **params: Any) -> None:
        """Send a request."""
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "speaker", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": TASKS,
        }
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        self.send(json.dumps(message).encode())

    @property
    def unread(self) -> int:
        """How many bytes of the server nobody has read."""
        assert self.process.stdout is not None
        count = fcntl.ioctl(self.process.stdout, termios.FIONREAD, b"\0" * 4)
        return int.from_bytes(count, sys.byteorder)

    def line(self) -> Any:
        """Return what the server says next."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def start(self) -> str:
        """Start a task that has no end; return its id."""
        task_id: str = self.request("tools/call", name="patient", arguments={})["result"]["taskId"]
        return task_id


@contextmanager
def speaking(
    database: Path, over: tuple[socket.socket, socket.socket] | None = None
) -> Generator[Speaker, None, None]:
    """Give a server process that is spoken to: over pipes, or a pair of sockets, as by Node.js."""
    end = subprocess.PIPE if over is None else over[1].fileno()
    with subprocess.Popen(
        [*COMMAND, str(database)], stdin=end, stdout=end, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        if over is not None:
            process.stdin, process.stdout = over[0].makefile("wb"), over[0].makefile("rb")
        assert process.stdout is not None
        assert process.stdout.readline() == b"this is no message\n"
        try:
            yield Speaker(process)
        finally:
            process.kill()


async def status_of(database: Path, task_id: str) -> TaskStatus:
    """Return how a task stands in a database."""
    async with SqliteTaskStore.open(database) as store, open_task_manager(store) as manager:
        record = await manager.find(task_id)
        assert record is not None
        return record.status


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
@pytest.mark.parametrize("unread", [0, 100])
async def test_the_end_is_prompt(tmp_path: Path, how: str, unread: int) -> None:
    """At the end of its input, and at SIGTERM, the server ends at once; its tasks are stopped, and told apart from lost.

    Also if the client does not read what it is answered.
    """
    database = tmp_path / "tasks.db"
    with speaking(database) as speaker:
        task_id = speaker.start()
        for number in range(unread):
            speaker.post(100 + number, "tools/list")
        await until(lambda: not unread or speaker.unread > _NEARLY_FULL)
        began = time.monotonic()
        if how == "SIGTERM":
            speaker.process.send_signal(signal.SIGTERM)
        else:
            assert speaker.process.stdin is not None
            speaker.process.stdin.close()
        assert speaker.process.wait(60) == 0
        assert time.monotonic() - began < PROMPT_S
        assert speaker.process.stderr is not None
        assert b"served" in speaker.process.stderr.read()
    assert await status_of(database, task_id) is TaskStatus.STOPPED


@pytest.mark.parametrize("how", ["does not listen", "is gone with unread answers"])
async def test_a_client_that_is_gone(tmp_path: Path, how: str) -> None:
    """That is no error, whether it shows in writing or in reading: the server ends as at the end of input."""
    database = tmp_path / "tasks.db"
    ours, theirs = socket.socketpair()
    with ours, theirs, speaking(database, (ours, theirs)) as speaker:
        task_id = speaker.start()
        process = speaker.process
        if how == "does not listen":
            ours.shutdown(socket.SHUT_RD)
            speaker.post(100, "tools/list")
        else:
            speaker.post(100, "tools/list")
            await until(lambda: speaker.unread > 0)
            for end in (process.stdin, process.stdout, ours):
                assert end is not None
                end.close()
        assert process.stderr is not None
        assert process.stderr.read() == b"served\n"
        assert process.wait(60) == 0
    assert await status_of(database, task_id) is TaskStatus.STOPPED


def test_killed_and_connected_again(tmp_path: Path) -> None:
    """After kill -9 the next connection of the same client finds its tasks, and how they stand."""
    database = tmp_path / "tasks.db"
    with speaking(database) as speaker:
        lost = speaker.start()
        done = speaker.request("tools/call", name="work", arguments={"run_in_background": True})
        done_id = done["result"]["structuredContent"]["task_id"]
        while speaker.request("tasks/get", taskId=done_id)["result"]["status"] == "working":
            time.sleep(0.05)
        speaker.process.kill()
    with speaking(database) as speaker:
        found = speaker.request("tasks/get", taskId=lost)["result"]
        assert found["status"] == "failed"  # its tool cannot resume
        assert found["error"]["data"]["status"] == "stopped"
        assert speaker.request("tasks/get", taskId=done_id)["result"]["status"] == "completed"


def test_lines_that_are_no_messages(tmp_path: Path) -> None:
    """What is no message, or longer than the bound, is passed over; the next one is answered."""
    with speaking(tmp_path / "tasks.db") as speaker:
        speaker.send(b"\xff nonsense")
        speaker.send(b"")
        speaker.send(b'{"jsonrpc": "2.0", "id": 9, "method": "' + b"x" * _stdio.MAX_LINE + b'"}')
        assert "result" in speaker.request("tools/list")


def test_what_is_printed_is_not_said(tmp_path: Path) -> None:
    """What a tool, or what it starts, writes to standard output goes to standard error."""
    program = (
        "import os, subprocess, sys, trio\n"
        "from tests.mcp.wire import served\n"
        "from trio_bgtasks import background_tool, open_task_manager\n"
        "from trio_bgtasks.mcp import serve_stdio\n"
        "@background_tool\n"
        "async def loud() -> str:\n"
        "    '''Print.'''\n"
        "    print('printed', flush=True)\n"
        "    subprocess.run('echo shouted; cat', shell=True)\n"
        "    return 'said'\n"
        "async def main():\n"
        "    async with open_task_manager() as manager:\n"
        "        await serve_stdio(served(manager, loud))\n"
        "    print('after')\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        speaker = Speaker(process)
        answer = speaker.request("tools/call", name="loud", arguments={})
        assert answer["result"]["content"][0]["text"] == "said"
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == b"after\n"  # both are as they were
        assert {b"printed", b"shouted"} <= set(process.stderr.read().split())


async def test_the_clients_of_the_sdk(tmp_path: Path) -> None:
    """The SDK's own client, of either era, finds its task again on the next connection."""
    database = str(tmp_path / "tasks.db")
    server = StdioServerParameters(
        command=COMMAND[0], args=[*COMMAND[1:], database], cwd=ROOT, env={**os.environ}
    )
    modes: tuple[Literal["2026-07-28", "legacy"], ...] = ("2026-07-28", "legacy")
    for mode in modes:
        # Both would take the line that the test's server prints for a broken message.
        async with Client(server, mode=mode) as client:
            arguments = {"seconds": 0, "run_in_background": True}
            started = await client.call_tool("work", arguments)
            assert started.structured_content is not None
            task_id = started.structured_content["task_id"]
        async with Client(server, mode=mode) as client:
            found = await client.call_tool("task_status", {"task_id": task_id})
            assert found.structured_content is not None
            assert found.structured_content["task_id"] == task_id


# ---- lines ---------------------------------------------------------------------------------------


class Chunks:
    """A stream that comes in these pieces."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for chunk in self.chunks:
            await trio.lowlevel.checkpoint()
            yield chunk


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ((), []),
        ((b"a\nb", b"c\n\n \nd"), ["a", "bc"]),
        ((b"12345678\n",), ["12345678"]),
        ((b"123456789\nx\n",), ["\0", "x"]),
        ((b"1234", b"56789", b"0" * 50, b"\nx\n"), ["\0", "x"]),
        ((b"\xff\n",), ["\ufffd"]),
    ],
)
async def test_lines(
    monkeypatch: pytest.MonkeyPatch, chunks: tuple[bytes, ...], lines: list[str]
) -> None:
    """Lines are cut from whatever pieces come; one that is too long is one that is no message."""
    monkeypatch.setattr(_stdio, "MAX_LINE", 8)
    reader: Any = Chunks(*chunks)
    scope = trio.CancelScope()
    assert [line async for line in _stdio._Lines(reader, scope)] == lines
    assert trio.current_time() <= scope.deadline <= trio.current_time() + 1
