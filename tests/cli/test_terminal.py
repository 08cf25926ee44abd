"""The command on a terminal: a pseudo-terminal, whose stream a person would see."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import struct
import termios
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.cli.command import PROGRAM, Cli, environment
from tests.processes import PATIENCE_S, until


class Terminal:
    """What a terminal was sent, and the process that sent it."""

    def __init__(self, process: trio.Process, master: int) -> None:
        self.process = process
        self.sent = b""
        self._master = master

    async def attend(self) -> None:
        """Take in what is sent until nobody has the terminal open."""
        while True:
            await trio.lowlevel.wait_readable(self._master)
            try:
                piece = os.read(self._master, 65536)
            except OSError as error:
                assert error.errno == errno.EIO  # noqa: PT017 - so Linux says: closed
                return
            if not piece:
                return
            self.sent += piece

    @property
    def text(self) -> str:
        """What was sent, without escape sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.sent.decode())


@asynccontextmanager
async def _terminal(
    *args: str, columns: int = 160, term: str = "xterm-256color"
) -> AsyncGenerator[Terminal, None]:
    """Run the command on a terminal, beside the block and no longer."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    try:
        process = await trio.lowlevel.open_process(
            [*PROGRAM, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment(), "TERM": term},
        )
    finally:
        os.close(slave)
    terminal = Terminal(process, master)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.attend)
        try:
            yield terminal
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    os.close(master)


async def test_run_draws_a_live_table(cli: Cli) -> None:
    """Status, attempt and last line of every task while they run; then the summary, in colour.

    What the commands print, or are called, is shown literally and steers nothing. One that ended
    may be collected meanwhile.
    """
    hostile = r"printf '\033]0;owned\007[red]%s[/red]\n' x"
    command = f"{hostile}; while ! test -e '{cli.db}.go'; do sleep 0.05; done"
    async with _terminal("run", "echo first; exit 3", command) as terminal:
        await until(lambda: "[red]x[/red]" in terminal.text and "first" in terminal.text)
        await until(lambda: "running" in terminal.text and "failed" in terminal.text)
        assert "LAST LINE" in terminal.text
        assert b"\x1b[?25l" in terminal.sent  # the cursor is hidden while the table is drawn
        assert (await cli("gc")).out == "1 ended tasks deleted\n"
        drawn = len(terminal.sent)
        await until(lambda: terminal.sent.count(b"LAST LINE", drawn) >= 2)
        cli.db.with_name(f"{cli.db.name}.go").touch()
        with trio.fail_after(PATIENCE_S):
            code = await terminal.process.wait()

    assert code == 1
    assert b"\x1b[?25h" in terminal.sent
    summary = terminal.text.rpartition("DETAIL")[2].strip().splitlines()
    assert [line.split()[1] for line in summary] == ["failed", "completed"]
    assert b"\x1b[32mcompleted" in terminal.sent
    assert b"\x1b]0;" not in terminal.sent
    assert b"\x07" not in terminal.sent


async def test_an_interrupt_leaves_the_terminal_as_it_was(cli: Cli) -> None:
    """After SIGINT the cursor is back and the summary says stopped."""
    async with _terminal("run", "sleep 1000") as terminal:
        await until(lambda: "running" in terminal.text and cli.sleeping())
        terminal.process.send_signal(signal.SIGINT)
        with trio.fail_after(PATIENCE_S):
            code = await terminal.process.wait()

    assert code == 130
    assert terminal.sent.rindex(b"\x1b[?25h") > terminal.sent.rindex(b"\x1b[?25l")
    assert "stopped" in terminal.text.rpartition("stopping")[2]


async def test_tables_fit_the_terminal(cli: Cli) -> None:
    """Ids stay whole, long descriptions are cut; `show` gives all of them."""
    done = await cli("run", f"true {'x' * 300}", "--json")
    task_id = done.json["tasks"][0]["task_id"]
    async with _terminal("ls") as listed, _terminal("show", task_id) as shown:
        with trio.fail_after(PATIENCE_S):
            assert await listed.process.wait() == 0
            assert await shown.process.wait() == 0

    header, row = listed.text.splitlines()
    assert header.startswith("TASK")
    assert row.startswith(f"{task_id}  completed")
    assert "…" in row
    assert max(map(len, listed.text.splitlines())) <= 160
    assert shown.text.count("x") >= 300
    assert "registered" in shown.text


@pytest.mark.parametrize("columns", [40, 60, 80])
async def test_narrow_terminals(cli: Cli, columns: int) -> None:
    """No line is too long, and none of id, status and attempt is cut, nor what happened when."""
    done = await cli("run", f"true {'x' * 300}", "--json", "--owner", "o" * 50)
    task_id = done.json["tasks"][0]["task_id"]
    for args, wanted in (
        (("ls", "--all"), (task_id, "completed  1  ")),
        (("wait", task_id), (task_id, "completed  1  ")),
        (("show", task_id), (" registered", " finished", "running")),
        (("doctor",), ("integrity",)),
    ):
        async with _terminal(*args, columns=columns) as terminal:
            with trio.fail_after(PATIENCE_S):
                assert await terminal.process.wait() == 0
        assert max(map(len, terminal.text.splitlines())) <= columns
        shown = [text for text in wanted if text in terminal.text]
        assert shown == list(wanted), terminal.text


async def test_a_narrow_live_table(cli: Cli) -> None:
    """Ids and statuses are whole while the tasks run, too."""
    command = f"echo said; while ! test -e '{cli.db}.go'; do sleep 0.05; done"
    async with _terminal("run", command, columns=40) as terminal:
        await until(lambda: "running  1" in terminal.text)
        assert re.search(r"^bg_\w{32}\s*$", terminal.text, re.MULTILINE)
        cli.db.with_name(f"{cli.db.name}.go").touch()
        with trio.fail_after(PATIENCE_S):
            assert await terminal.process.wait() == 0
    assert "completed  1" in terminal.text


@pytest.mark.parametrize("term", ["dumb", "unknown"])
async def test_a_terminal_that_cannot_be_drawn_on(cli: Cli, term: str) -> None:
    """It gets what a pipe gets: plain lines, each when it is known, nothing shortened."""
    command = f"while ! test -e '{cli.db}.go'; do sleep 0.05; done; : {'x' * 150}"
    async with _terminal("run", command, columns=60, term=term) as terminal:
        await until(lambda: "  started" in terminal.text)
        cli.db.with_name(f"{cli.db.name}.go").touch()
        with trio.fail_after(PATIENCE_S):
            assert await terminal.process.wait() == 0
    assert b"\x1b" not in terminal.sent
    assert max(map(len, terminal.text.splitlines())) > 100
