"""The pages for readers say what is so: their examples run, what they name exists."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from trio_bgtasks import LeaseTerms, ManagerConfig, stores
from trio_bgtasks.cli._app import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ROOMS = ("tutorial", "how-to", "reference")
PAGES = [
    ROOT / "README.md",
    *sorted(page for room in ROOMS for page in (DOCS / room).rglob("*.md")),
]
DEFECTS = DOCS / "explanation" / "original-defects.md"

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INCLUDED = re.compile(r"^```\{literalinclude\} (\S+)\n```$", re.MULTILINE)  # a whole file
_FILE = re.compile(r"# (\w+\.py)\n")
_LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


# ---- examples ------------------------------------------------------------------------------------


@attrs.define
class Example:
    """The blocks of one page, run in their order in one folder and one namespace.

    ``python`` is run here; if it begins with a comment that is a file's name, it becomes that file.
    ``sh`` is run by the shell. ``text`` is what the block before it printed. Others are not run.
    """

    folder: Path
    names: dict[str, Any] = attrs.field(factory=lambda: {"__name__": "__main__"})
    printed: str = ""

    def step(self, language: str, text: str) -> None:
        """Run one block."""
        if language == "python" and (file := _FILE.match(text)):
            (self.folder / file[1]).write_text(text)
        elif language == "python":
            self.printed = self._python(text)
        elif language == "sh":
            self.printed = self._shell(text)
        elif language == "text":
            same = doctest.OutputChecker().check_output(text, self.printed, _LIKE)
            assert same, f"the page says\n{text}\nbut this was printed\n{self.printed}"

    def _python(self, text: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(text, "example", "exec", dont_inherit=True), self.names)
        return printed.getvalue()

    def _shell(self, text: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", text],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "TRIO_BGTASKS_DB": str(self.folder / "tasks.db")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"{text}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_examples_run_and_print_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example of the README, tutorial, how-to guides and reference runs as it stands.

    A file that the page shows as a whole is there for them.
    """
    monkeypatch.chdir(tmp_path)
    example = Example(tmp_path)
    written = page.read_text()
    for path in _INCLUDED.findall(written):
        shutil.copy(page.parent / path, tmp_path)
    for language, text in _BLOCK.findall(written):
        if page.name != "README.md" or language == "python":  # its sh blocks are what CI runs
            example.step(language, text)


def test_the_readme_begins_with_two_commands() -> None:
    """Its first code blocks are what a newcomer types: see the demo, pass the tests; a line each."""
    (first, demo), (second, tests) = _BLOCK.findall((ROOT / "README.md").read_text())[:2]
    assert first == second == "sh"
    assert demo.count("\n") == tests.count("\n") == 1
    assert demo.endswith(".venv/bin/trio-bgtasks demo\n")
    assert tests.endswith(".venv/bin/python -m pytest -n auto --dist worksteal\n")


# ---- the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ManagerConfig, LeaseTerms], ids=lambda kind: kind.__name__)
def test_the_defaults_are_those_of_the_code(kind: type[attrs.AttrsInstance]) -> None:
    """The page of the configuration has every field, with its default."""
    page = (DOCS / "reference" / "configuration.md").read_text()
    section = page.split(f"## `{kind.__name__}`", 1)[1].split("\n## ", 1)[0]
    shown = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, re.MULTILINE))
    fields = attrs.fields(kind)
    assert list(shown) == [field.name for field in fields]
    for field in fields:
        assert eval(shown[field.name], dict(vars(stores))) == field.default, field.name


def test_every_command_and_option_is_described() -> None:
    """The page of the command has what its help has."""
    page = (DOCS / "reference" / "command.md").read_text()
    for name in app:
        if name.startswith("-"):
            continue
        line = next(line for line in page.splitlines() if line.startswith(f"`trio-bgtasks {name}"))
        options = {part for a in app[name].assemble_argument_collection() for part in a.names}
        common = {"--db", "--json"}
        named = {option for option in options - common if option.startswith("-")}
        assert set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", line)) == named, name


# ---- the defects of the original -----------------------------------------------------------------


def rows(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (number, answer) of every row of the page's tables."""
    for line in page.read_text().splitlines():
        if match := re.match(r"\| C(\d+) \|.*\|(.*)\|$", line):
            yield match[1], match[2]


def docstring_of(test: str) -> str:
    """Return the docstring of the test ``path::name``."""
    path, _, name = test.partition("::")
    (found,) = (
        node
        for node in ast.parse((ROOT / path).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    )
    return ast.get_docstring(found) or ""


def test_every_defect_of_the_original_is_answered() -> None:
    """The page lists C1 to C46, each with a test, a reason why it cannot occur, or its absence."""
    found = dict(rows(DEFECTS))
    assert list(found) == [str(number) for number in range(1, 47)]
    for number, answer in found.items():
        by = re.search(r"::|by construction|not built yet|kept on purpose", answer.lower())
        assert by, f"C{number} is not answered: {answer}"


def test_every_test_named_for_a_defect_exists_and_names_it() -> None:
    """A test that the page names exists, and its docstring names the number."""
    for number, answer in rows(DEFECTS):
        for test in re.findall(r"`(tests/[^`]*::[^`]*)`", answer):
            assert re.search(rf"\bC{number}\b", docstring_of(test)), f"{test}: no C{number}"


# ---- the guarantees ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["guarantees", "security"])
def test_every_test_named_for_a_promise_exists(name: str) -> None:
    """The pages of the guarantees and of attacks name tests, and files of tests, that are there."""
    page = (DOCS / "explanation" / f"{name}.md").read_text()
    there = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named
    assert {name for name in named if f"def {name}(" not in there} == set()
    files = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert {file for file in files if not (ROOT / file).exists()} == set()
