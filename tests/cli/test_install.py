"""`install`: the entry of the server in the files of clients, and nothing else is changed there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from trio_bgtasks.cli import _serve  # noqa: F401 - imported before a test names another platform
from trio_bgtasks.cli._app import run_app

CLIENTS = ("claude-code", "claude-desktop", "cursor", "vscode")
FILES = {
    "linux": {
        "claude-code": ".claude.json",
        "claude-desktop": ".config/Claude/claude_desktop_config.json",
        "cursor": ".cursor/mcp.json",
        "vscode": ".config/Code/User/mcp.json",
    },
    "darwin": {
        "claude-code": ".claude.json",
        "claude-desktop": "Library/Application Support/Claude/claude_desktop_config.json",
        "cursor": ".cursor/mcp.json",
        "vscode": "Library/Application Support/Code/User/mcp.json",
    },
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def servers(settings: Any, client: str) -> Any:
    """Return the servers of a client's settings."""
    return settings["servers" if client == "vscode" else "mcpServers"]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("platform", FILES)
def test_what_is_printed_is_what_is_written(
    client: str,
    platform: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each client has its own file and key; the entry starts this very installation."""
    monkeypatch.setattr(sys, "platform", platform)
    root = str(tmp_path_factory.mktemp("a b"))
    call = ["install", client, "--name", "shell", "--", "--root", root, "--deny", "*rm *"]
    assert run_app(call) == 0
    printed, where = capsys.readouterr()
    path = home / FILES[platform][client]
    assert str(path) in where
    assert list(home.iterdir()) == []
    assert run_app([*call[:2], "--write", *call[2:]]) == 0
    assert json.loads(path.read_text()) == json.loads(printed)
    entry = servers(json.loads(printed), client)["shell"]
    assert entry.pop("type", "stdio") == "stdio"
    assert entry == {
        "command": sys.executable,
        "args": ["-P", "-m", "trio_bgtasks.cli", "serve", "--root", root, "--deny", "*rm *"],
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_folder_of_the_settings_can_be_elsewhere(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment says so."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "x"))
    assert run_app(["install", "vscode"]) == 0
    assert str(home / "x" / "Code" / "User" / "mcp.json") in capsys.readouterr().err


def test_nothing_else_is_changed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other settings stay, a copy of the file is kept, each time another; its mode and link stay."""
    real = home / "dotfiles" / "mcp.json"
    real.parent.mkdir()
    before = '{"é": [1, 2.50],\n "mcpServers": {"other": {"command": "x"}}}'
    real.write_text(before, encoding="utf-8")
    real.chmod(0o640)
    path = home / ".cursor" / "mcp.json"
    path.parent.mkdir()
    path.symlink_to(real)
    for number, root in (("", "/"), ("1", os.path.realpath("/tmp"))):
        text = path.read_text(encoding="utf-8")
        assert run_app(["install", "cursor", "--write", "--", "--root", root]) == 0
        backup = path.with_name(f"mcp.json.bak{number}")
        assert f"as it was: {backup}" in capsys.readouterr().out
        assert backup.read_text(encoding="utf-8") == text
        assert backup.stat().st_mode & 0o777 == 0o600
    assert path.with_name("mcp.json.bak").read_text(encoding="utf-8") == before
    assert path.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    settings = json.loads(real.read_text(encoding="utf-8"))
    ours = settings["mcpServers"].pop("trio-bgtasks")
    assert ours["args"][-1] == root
    assert settings == json.loads(before)
    assert run_app(["install", "cursor", "--write", "--", "--root", root]) == 0
    assert "has it already" in capsys.readouterr().out
    assert sorted(os.listdir(path.parent)) == ["mcp.json", "mcp.json.bak", "mcp.json.bak1"]
    assert os.listdir(real.parent) == ["mcp.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"servers": {} /* mine */}', "is no plain JSON object (are there comments in it?)"),
        (b"[]", "is no plain JSON object"),
        (b"[" * 100_000, "is no plain JSON object"),
        (b'{"servers": 1}', "'servers' is no object"),
        (b'{"other": 1e999}', "cannot be written again"),
        (
            b'{"servers": {"trio-bgtasks": {"command": "mine"}}}',
            "has another server 'trio-bgtasks'",
        ),
        (b"\xff", "cannot read"),
    ],
)
def test_what_it_does_not_understand_it_leaves(
    home: Path, content: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with comments, or of another shape, is left as it is, and that is said."""
    path = home / FILES["linux"]["vscode"]
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert run_app(["install", "vscode", "--write"]) == 1
    assert words in capsys.readouterr().err
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["mcp.json"]


def test_an_empty_file_is_as_good_as_none(home: Path) -> None:
    """Editors leave such."""
    path = home / FILES["linux"]["vscode"]
    path.parent.mkdir(parents=True)
    path.write_bytes(b" \n")
    assert run_app(["install", "vscode", "--write"]) == 0
    assert list(json.loads(path.read_text())["servers"]) == ["trio-bgtasks"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--root", "~/x"], "the client starts the server in some folder: --root {home}/x"),
        (["--root", "/no such"], "root is no directory"),
        (["--db", "x"], "the client starts the server in some folder: --db {cwd}/x"),
        (["--tools", "x.py:y"], "the client starts the server in some folder: --tools {cwd}/x.py"),
        (["--tools", "no_such:y"], "cannot load no_such:y"),
        (["--http", "127.0.0.1:1"], "over stdio: leave out --http"),
        (["--deadline-s", "-1"], "attempt_deadline_s"),
        (["--no-such"], "Unknown option"),
    ],
)
def test_what_could_not_start_is_not_written(
    options: list[str], words: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would fail in the client, where nobody sees it."""
    assert run_app(["install", "cursor", "--write", "--", *options]) in (1, 2)
    said = " ".join(capsys.readouterr().err.split())
    assert words.format(home=home, cwd=Path.cwd()) in said
    assert os.listdir(home) == []


def test_options_of_the_server_stand_behind_dashes(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who forgets them is told, and not of an option that is spelled alike."""
    assert run_app(["install", "cursor", "--root", "/"]) == 2
    assert "What is for serve stands behind --." in capsys.readouterr().err
    assert os.listdir(home) == []


def test_it_needs_what_the_server_needs(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the SDK the entry would be of no use."""
    monkeypatch.delitem(sys.modules, "trio_bgtasks.cli._serve", raising=False)
    monkeypatch.setitem(sys.modules, "hypercorn", None)
    monkeypatch.setitem(sys.modules, "trio_bgtasks.mcp", None)
    assert run_app(["install", "cursor", "--write"]) == 1
    assert "install trio-bgtasks[cli,mcp]" in capsys.readouterr().err
    assert os.listdir(home) == []


def test_a_write_that_fails_leaves_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, for one: the file is what it was, and nothing else lies about but the copy."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = home / ".claude.json"
    path.write_text("{}")
    monkeypatch.setattr(os, "fsync", full)
    assert run_app(["install", "claude-code", "--write"]) == 1
    assert path.read_text() == "{}"
    assert sorted(os.listdir(home)) == [".claude.json", ".claude.json.bak"]


def test_half_a_character_stays(home: Path) -> None:
    """JSON can say it; UTF-8 cannot."""
    path = home / ".claude.json"
    path.write_text(r'{"x": "\ud83d é"}', encoding="utf-8")
    assert run_app(["install", "claude-code", "--write"]) == 0
    assert json.loads(path.read_bytes())["x"] == "\ud83d é"


def test_what_the_client_writes_meanwhile_is_not_lost(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is changed, and that is said."""
    path = home / ".claude.json"
    path.write_text("{}")
    monkeypatch.setattr(os, "fsync", lambda _: path.write_text('{"new": 1}'))
    assert run_app(["install", "claude-code", "--write"]) == 1
    assert "was changed meanwhile: close the client" in capsys.readouterr().err
    assert path.read_text() == '{"new": 1}'
    assert sorted(os.listdir(home)) == [".claude.json", ".claude.json.bak"]


def test_what_the_server_does_not_take_is_not_installed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client would only show that it does not start."""
    assert run_app(["install", "cursor", "--write", "--", "--rot", "/x"]) == 2
    assert "--rot" in capsys.readouterr().err
    assert list(home.iterdir()) == []


def test_no_other_client(capsys: pytest.CaptureFixture[str]) -> None:
    """Those are named that it knows."""
    assert run_app(["install", "emacs"]) == 2
    assert "claude-desktop" in capsys.readouterr().err
