"""The command line itself: usage, errors, and where the database is."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import logging
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import trio

from tests.cli.command import PROGRAM, Cli, environment
from trio_bgtasks import StoreBusy
from trio_bgtasks.cli import _session, main
from trio_bgtasks.cli._session import Session, _serve, database
from trio_bgtasks.stores.sqlite import SqliteTaskStore


def _main(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trio-bgtasks", *args])
    return main()


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["--nonsense"],
        ["--db"],
        ["--db", "x.db"],
        ["-f"],
        ["ls", "--db"],
        ["ls", "more"],
        ["ls", "--owner", ""],
        ["ls", "--owner", "a\nb"],
        ["--owner", "me", "show", "id"],
        ["ls", "--owner", "me", "--all"],
        ["gc", "--all", "--owner", "cli"],
        ["run"],
        ["run", "--nonsense", "true"],
        ["run", "true", "--resumable=perhaps"],
        ["show"],
        ["show", "one", "two"],
        ["show", "a\x1bb"],
        ["wait", "one", " "],
        ["logs", "--follow"],
        ["cancel", "--tree"],
        ["resume"],
        ["demo", "--json"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    """One line on standard error that only prints; nothing on standard output, nothing done."""
    assert _main(monkeypatch, *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trio-bgtasks: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()


def test_an_unknown_command_is_answered_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one line names both."""
    assert _main(monkeypatch, "lst") == 2
    err = capsys.readouterr().err
    assert '"lst"' in err
    assert '"ls"' in err


def test_no_command_shows_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of the issue is in the help; without a command that is a usage error."""
    assert _main(monkeypatch) == 2
    out, err = capsys.readouterr()
    names = "cancel demo doctor gc logs ls resume run show wait"
    assert [name for name in names.split() if f" {name} " in out] == names.split()
    assert err == ""


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--help"], "Exit codes"),
        (["run", "--help"], "--resumable"),
        (["logs", "-h"], "-f"),
        (["--version"], version("trio-bgtasks")),
    ],
)
def test_help_and_version(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    text: str,
) -> None:
    """They are printed, and are no error."""
    assert _main(monkeypatch, *args) == 0
    assert text in capsys.readouterr().out


def test_a_missing_command_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options alone are no command, and none of them is taken for one."""
    assert _main(monkeypatch, "--json", "--db", "x.db") == 2
    assert capsys.readouterr().err.startswith("trio-bgtasks: a command is missing")


async def test_options_stand_before_or_behind_the_command(cli: Cli, tmp_path: Path) -> None:
    """And between its arguments; what follows ``--`` is a command, whatever it looks like."""
    db = str(tmp_path / "other.db")
    done = await cli("--db", db, "run", "true", "--json", "--owner=me", "--", "--help")
    assert [task["owner_thread_id"] for task in done.json["tasks"]] == ["me", "me"]
    assert done.json["tasks"][1]["description"].startswith("--help")
    assert not cli.db.exists()
    listed = await cli("--json", f"--db={db}", "--owner", "me", "ls")
    assert listed.json == done.json
    logs = await cli("-f", "--db", db, "logs", done.json["tasks"][0]["task_id"])
    assert (logs.code, logs.raw, logs.errors) == (0, b"", "")


def test_where_the_database_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The option, else the environment's, else one in the user's state folder."""
    monkeypatch.setenv("TRIO_BGTASKS_DB", "named.db")
    assert database(Path("option.db")) == Path("option.db")
    assert database(None) == Path("named.db")
    monkeypatch.setenv("TRIO_BGTASKS_DB", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    found = database(None)
    assert found.name == "tasks.db"
    assert found.parent.name == "trio_bgtasks"
    assert tmp_path in found.parents


@pytest.mark.parametrize("missing", ["cyclopts", "platformdirs", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    """One line and exit code 2, as for any wrong use."""
    code = f"import sys; sys.modules[{missing!r}] = None; from trio_bgtasks import cli; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code} sys.exit(cli.main())", "ls"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert "pip install 'trio-bgtasks[cli]'" in done.stderr


async def test_a_database_that_cannot_be_opened(cli: Cli, tmp_path: Path) -> None:
    """A folder, a foreign database, a newer schema: one line and exit code 1, nothing changed."""
    foreign, newer = tmp_path / "foreign.db", tmp_path / "newer.db"
    async with SqliteTaskStore.open(newer):
        pass
    for path, statement in (
        (foreign, "CREATE TABLE theirs (x)"),
        (newer, "PRAGMA user_version = 99"),
    ):
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.close()
    for path in (tmp_path, foreign, newer):
        content = None if path.is_dir() else path.read_bytes()
        done = await cli("ls", "--db", str(path))
        assert (done.code, done.out) == (1, "")
        assert done.errors.startswith("trio-bgtasks: ")
        assert done.errors.count("\n") == 1
        assert content is None or path.read_bytes() == content


async def test_a_full_disk_is_one_line(cli: Cli) -> None:
    """An error that is none of ours is named with its kind, without a traceback."""
    async with SqliteTaskStore.open(cli.db):
        pass
    done = await trio.run_process(
        ["/bin/sh", "-c", f"{shlex.join(PROGRAM)} ls >/dev/full"],
        capture_stderr=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 1
    assert done.stderr == b"trio-bgtasks: OSError: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("args", "code", "out", "errors"),
    [
        (["show", "nobody"], 3, 0, 1),
        (["show"], 2, 0, 1),
        (["run", "exit 3"], 1, 3, 0),
        (["run", "echo x; echo y >&2"], 0, 3, 0),
        (["ls"], 0, 1, 0),
    ],
)
async def test_a_closed_stream_is_as_good_as_none(
    cli: Cli, args: list[str], code: int, out: int, errors: int
) -> None:
    """Whichever are closed, nothing else changes: the exit code, nor what the others get.

    No file that is opened meanwhile, the database even, takes the place of one.
    """
    async with SqliteTaskStore.open(cli.db):
        pass
    for closed, has_out, has_errors in (
        ("<&-", True, True),
        (">&-", False, True),
        ("2>&-", True, False),
        ("<&- >&- 2>&-", False, False),
    ):
        done = await trio.run_process(
            ["/bin/sh", "-c", f"{shlex.join([*PROGRAM, *args])} {closed}"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(),
        )
        lines = (done.stdout.count(b"\n"), done.stderr.count(b"\n"))
        assert (done.returncode, *lines) == (code, out * has_out, errors * has_errors)
    assert (await cli("doctor")).code == 0


async def test_a_file_is_no_folder(cli: Cli, tmp_path: Path) -> None:
    """A database below a file: the line names the file, and nothing is changed."""
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / "deeper" / "x.db"
    done = await cli("run", "true", "--db", str(below))
    assert (done.code, done.out) == (1, "")
    text = f"cannot open the task store {below}: {tmp_path}/file is not a folder"
    assert done.errors == f"trio-bgtasks: {text}\n"
    done = await cli("ls", "--db", str(below))
    assert done.errors == f"trio-bgtasks: there is no database at {below}\n"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_the_exit_code_is_the_signals_though_the_clean_up_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    """What went wrong after the signal is one line; only a reader that has gone goes first."""
    errors: list[Exception] = [StoreBusy("busy"), OSError("full"), BrokenPipeError()]

    async def command(_: Session) -> int:
        os.kill(os.getpid(), number)
        try:
            await trio.sleep_forever()
        finally:
            raise errors.pop(0)

    session = Session(tmp_path / "tasks.db", json=False)
    for line in ("busy", "OSError: full"):
        assert await _serve(command, session) == code
        assert capsys.readouterr().err == f"trio-bgtasks: {line}\n"
    with pytest.raises(BrokenPipeError):
        await _serve(command, session)
    assert capsys.readouterr().err == ""


def test_an_interrupt_before_the_command_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C in `main`, while the rest of the command is being loaded, is no traceback."""

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("trio_bgtasks.cli._app.run_app", interrupted)
    assert _main(monkeypatch, "ls") == 128 + signal.SIGINT


def test_a_warning_shows_what_was_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line, so that nothing in it can steer the terminal."""
    raised = (ValueError, ValueError("one\x1b[31m\ntwo"), None)
    record = logging.LogRecord("trio_bgtasks", logging.WARNING, "", 0, "a tool failed", (), raised)
    _session._StderrHandler(logging.WARNING).handle(record)

    first, one, two = capsys.readouterr().err.splitlines()
    assert first == "trio-bgtasks: warning: a tool failed"
    assert one.startswith("trio-bgtasks: ValueError: one")
    assert "\x1b" not in one
    assert two == "trio-bgtasks: two"
