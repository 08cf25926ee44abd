"""Run mutmut's mutants: ``python .ci/mutants.py [--survivors] [PATTERN ...]``.

mutmut makes the mutants, and shows them; ``[tool.mutmut]`` says of what, and which tests have to
notice. But for each mutant it collects these tests again and asks them in any order, which takes
hours here. This script collects once, forks for each mutant, and asks those tests first that
noticed its neighbours. A mutant that has a result keeps it until its function changes; with
``--survivors`` those that survived are asked again, too. A pattern is one of mutants' names.

Results are where mutmut looks for them: ``mutmut results`` lists, ``mutmut show NAME`` shows one.
"""

from __future__ import annotations

import fnmatch
import gc
import os
import signal
import sys
import time
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

os.environ["MUTANT_UNDER_TEST"] = "mutant_generation"  # what mutmut itself says meanwhile

import pytest
from mutmut.__main__ import (
    copy_also_copy_files,
    copy_src_dir,
    create_mutants,
    setup_source_paths,
    walk_mutatable_files,
)
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.file_utils import change_cwd
from mutmut.utils.format_utils import mangled_name_from_mutant_name

KILLED, SURVIVED, NO_TESTS, TIMEOUT = 1, 0, 33, 36  # mutmut's own codes
NAMES = {KILLED: "killed", SURVIVED: "survived", NO_TESTS: "no tests", TIMEOUT: "timeout"}
CPU_S, WALL_S = 5, 20  # of one test; the longest needs less than one
SLOW_S = 600  # of all tests of a mutant that only makes them slow
WORKERS = len(os.sched_getaffinity(0)) + 1  # what hangs leaves its core to the others
ROOT = Path.cwd()  # mutmut's files are found from here, the tests run in mutants/


class Mutants:
    """The mutants, their results, and who killed them."""

    def __init__(self, patterns: list[str], *, survivors: bool) -> None:
        self.files = [SourceFileMutationData(path=path) for path in walk_mutatable_files()]
        self.wanted: list[tuple[SourceFileMutationData, str]] = []
        for file in self.files:
            file.load()
            self.wanted += [
                (file, name)
                for name, code in file.exit_code_by_key.items()
                if code is None or (survivors and code == SURVIVED)
                if any(fnmatch.fnmatch(name, pattern) for pattern in patterns or ["*"])
            ]
        self.killers: dict[str, list[str]] = defaultdict(list)  # of a function, the last one first
        self.kills = Counter[str]()  # of a test

    def order(self, function: str, cpu: dict[str, float]) -> list[str]:
        """Return the tests of a function, the most promising one first."""
        first = list(dict.fromkeys(self.killers[function]))
        rest = sorted(cpu.keys() - set(first), key=lambda test: cpu[test] / (1 + self.kills[test]))
        return first + rest

    def report(self) -> None:
        """Print the results, a line for each module."""
        for file in self.files:
            file.load()
            codes = Counter(file.exit_code_by_key.values())
            counts = [f"{codes[code]} {name}" for code, name in NAMES.items()]
            print(f"{file.path}: {', '.join(counts)}, {codes[None]} not checked")


class Session:
    """A plugin of pytest: what it has collected is run again and again."""

    def __init__(self, mutants: Mutants) -> None:
        self.mutants = mutants
        self.failed: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember what failed."""
        if report.failed:
            self.failed = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests of each mutant instead of all tests."""
        if session.testsfailed:
            return None  # to be reported
        self.items = {item.nodeid: item for item in session.items}
        self.functions = self.watch()
        gc.freeze()  # what is collected is shared with the forks
        running: dict[int, tuple[SourceFileMutationData, str, int]] = {}
        began = time.monotonic()
        for done, (file, mutant) in enumerate(self.mutants.wanted):
            function = mangled_name_from_mutant_name(mutant)
            tests = self.mutants.order(function, self.functions.get(function, {}))
            if len(running) == WORKERS:
                self.reap(running)
            reader, writer = os.pipe()
            if (pid := os.fork()) == 0:
                self.judge(mutant, tests, writer)
            os.close(writer)
            running[pid] = file, mutant, reader
            if done % 100 == 99:
                print(f"{done + 1} of {len(self.mutants.wanted)}", flush=True)
        while running:
            self.reap(running)
        used = os.times()
        cpu_s = used.user + used.system + used.children_user + used.children_system
        print(f"{time.monotonic() - began:.0f} s, {cpu_s:.0f} s of CPU time")
        return True

    def run(self, test: str) -> str | None:
        """Run a test; return its name if it failed."""
        self.failed = None
        item = self.items[test]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self.failed

    def watch(self) -> dict[str, dict[str, float]]:
        """Run every test without a mutant; return the tests of each function, with their cost."""
        functions: dict[str, dict[str, float]] = defaultdict(dict)
        set_mutant_under_test("stats")
        for test in self.items:
            state()._stats.clear()
            began = time.process_time()
            if self.run(test):
                sys.exit(f"{test} fails without a mutant")
            for function in state()._stats:
                functions[function][test] = time.process_time() - began
        set_mutant_under_test("")
        return functions

    def judge(self, mutant: str, tests: list[str], writer: int) -> None:
        """Tell, in a process of its own, which test notices the mutant. Never returns."""
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        set_mutant_under_test(mutant)
        began = time.monotonic()
        for test in tests:
            if time.monotonic() - began > SLOW_S:
                os._exit(TIMEOUT)
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # nobody listens: that ends the process
            signal.alarm(WALL_S)
            try:
                killer = self.run(test)
            except BaseException:  # noqa: BLE001 - pytest itself fell over it
                killer = test
            if killer:
                os.write(writer, killer.encode())
                os._exit(KILLED)
        os._exit(SURVIVED if tests else NO_TESTS)

    def reap(self, running: dict[int, tuple[SourceFileMutationData, str, int]]) -> None:
        """Wait for the end of a mutant and store its result."""
        pid, status = os.wait()
        file, mutant, reader = running.pop(pid)
        with os.fdopen(reader, encoding="utf-8") as told:
            killer = told.read()
        if killer:
            self.mutants.killers[mangled_name_from_mutant_name(mutant)].insert(0, killer)
            self.mutants.kills[killer] += 1
        code = os.waitstatus_to_exitcode(status)
        hung = code in (-signal.SIGPROF, -signal.SIGALRM)
        file.exit_code_by_key[mutant] = TIMEOUT if hung else code if code >= 0 else KILLED
        with change_cwd(ROOT):
            file.save()


def main(arguments: list[str]) -> int:
    """Make the mutants that are not there yet, run them, print the results."""
    selection = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["tool"]["mutmut"]
    tests = selection["pytest_add_cli_args_test_selection"]
    Path("mutants").mkdir(exist_ok=True)
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    create_mutants(WORKERS)
    survivors = "--survivors" in arguments
    mutants = Mutants([a for a in arguments if a != "--survivors"], survivors=survivors)
    with change_cwd("mutants"):
        arguments = ["--rootdir=.", "--quiet", "--tb=short", "-p", "no:cacheprovider", "-s", *tests]
        code = pytest.main(arguments, plugins=[Session(mutants)])
    mutants.report()
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
