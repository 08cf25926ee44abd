"""`GuardedShell` keeps to the commands, and to the directory, that it was told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import OWNER, opened
from trio_bgtasks import BackgroundCapable, Denied, ToolCallContext
from trio_bgtasks.tools import GuardedShell

CONTEXT = ToolCallContext(thread_id=OWNER)
TEXTS = st.text(st.sampled_from("ab;\n"), max_size=8)


def refusal(tool: GuardedShell, **args: Any) -> str | None:
    """Return with which words a call is refused."""
    try:
        tool.prepare_background(args, CONTEXT, is_resume=False)
    except Denied as refused:
        return str(refused)
    return None


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("git status", True),
        ("git log --oneline -3 'a b' é", True),
        ("make", True),
        ("ls /a1", True),
        ("ls /a12", False),
        ("git", False),
        ("makefile", False),
        ("sudo git status", False),
        *(
            (f"git status{text}", False)
            for text in ("; id", " && id", "|sh", "&id", "\nid", "\rid")
        ),
        *(
            (f"git {text}", False)
            for text in ("$(id)", "`id`", "log > f", "log < f", "${IFS}x", "<(id)")
        ),
        ("a.b", True),
        ("axb", False),
        ("run a;b", True),
        ("run a;b;c", False),
    ],
)
def test_what_is_allowed(command: str, allowed: bool) -> None:  # noqa: FBT001
    """A pattern has to match the whole command; what it leaves open lets no other command begin."""
    tool = GuardedShell(allow=["git *", "make", "ls /a?", "a.b", "run a;b"])
    words = None if allowed else "Denied: this command is none of those that this server runs"
    assert refusal(tool, command=command) == words


@pytest.mark.parametrize("command", ["rm -rf /", "cd /; rm -rf *", "echo\nrm x", "rm "])
def test_what_is_denied(command: str) -> None:
    """A denied pattern matches any text, and counts before what is allowed."""
    words = "Denied: this server does not run such a command"
    assert refusal(GuardedShell(deny=["*rm *"]), command=command) == words
    assert refusal(GuardedShell(allow=["*"], deny=["*rm *"]), command=command) == words
    assert refusal(GuardedShell(deny=["*rm *"]), command="echo") is None


def test_the_example_of_the_docs() -> None:
    """What the page shows is kept."""
    tool = GuardedShell(allow=["git *", "make *"], deny=["*push*"])
    assert refusal(tool, command="git log --oneline") is None
    for command in ("git push", "git push origin main", "git log; git push", "make;x"):
        assert refusal(tool, command=command) is not None


@given(st.lists(st.sampled_from(["a", "b", "ab", "*", "?", ";", "\n"]), max_size=6), TEXTS)
def test_patterns_match_what_they_say(parts: list[str], text: str) -> None:
    """As the plain expression does that tries every way, which may take for ever."""
    pattern = "".join(parts)
    for character, tool in (
        ("[^;&|<>()`$\n\r]", GuardedShell(allow=[pattern])),
        ("(?s:.)", GuardedShell(deny=[pattern])),
    ):
        wild = {"*": f"{character}*", "?": character}
        plain = "".join(wild.get(c, re.escape(c)) for c in pattern)
        matches = re.fullmatch(plain, text) is not None
        assert (refusal(tool, command=text) is None) is (matches == ("[^" in character))


def test_a_long_command_is_looked_at_in_no_time() -> None:
    """However many ways there would be to match it: the loop, and every other client, waits."""
    command = "rm -r" * 200_000
    assert refusal(GuardedShell(deny=["*rm*-rf*x*y*"]), command=command) is None
    assert refusal(GuardedShell(allow=["*rm*-rf*x*y*"]), command=command) is not None


def test_nothing_is_allowed_by_an_empty_list() -> None:
    """It is a list, not the absence of one."""
    assert refusal(GuardedShell(allow=[]), command="true") is not None
    assert refusal(GuardedShell(), command="true") is None


async def test_the_root(tmp_path: Path) -> None:
    """Commands run in it, or below; nothing, a symbolic link neither, leads outside."""
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "below")
    tool = GuardedShell(root=root)
    for outside in (
        "..",
        "/",
        str(tmp_path),
        "out",
        "below/../../x",
        "out/root/..",
        f"{root}x",
        "a\x00b",
    ):
        assert refusal(tool, command="true", cwd=outside) == f"Denied: cwd is outside of {root}"
    async with opened() as manager:
        shell = BackgroundCapable(tool, manager)
        places: dict[str | None, Path] = {
            None: root,
            "below": root / "below",
            "in": root / "below",
            str(root): root,
        }
        for cwd, place in places.items():
            args = {"command": "pwd"} if cwd is None else {"command": "pwd", "cwd": cwd}
            await shell.execute(args, CONTEXT)
            (task,) = await manager.list_tasks(OWNER)
            assert (await manager.output(OWNER, task.task_id)).text == f"{place}\n"
            await manager.gc_terminal(OWNER)
        with pytest.raises(Denied):
            await shell.execute(
                {"command": "pwd", "cwd": "out", "run_in_background": True}, CONTEXT
            )
        assert await manager.list_tasks(OWNER) == []


async def test_without_a_root_commands_run_where_they_are_told(tmp_path: Path) -> None:
    """As with `ShellTool`."""
    async with opened() as manager:
        shell = BackgroundCapable(GuardedShell(), manager)
        await shell.execute({"command": "pwd", "cwd": str(tmp_path)}, CONTEXT)
        (task,) = await manager.list_tasks(OWNER)
        assert (await manager.output(OWNER, task.task_id)).text == f"{tmp_path}\n"


async def test_a_link_that_changes_meanwhile(tmp_path: Path) -> None:
    """Where a command runs is looked at again when it starts."""
    (tmp_path / "root").mkdir()
    tool = GuardedShell(root=tmp_path / "root")
    args = {"command": "pwd", "cwd": "link"}
    assert refusal(tool, **args) is None
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(Denied, match="cwd is outside"):
        await tool.execute_background("t", args, None, None, None)  # type: ignore[arg-type]


def test_what_it_cannot_be_told(tmp_path: Path) -> None:
    """A string is no list of patterns; a file is no directory."""
    wrong: Any
    for wrong in ("git *", 1, None, [1]):
        with pytest.raises(TypeError, match=r"^deny must "):
            GuardedShell(deny=wrong)
    with pytest.raises(TypeError, match=r"^allow must "):
        GuardedShell(allow="*")
    with pytest.raises(ValueError, match=r"^root is no directory: "):
        GuardedShell(root=tmp_path / "none")
