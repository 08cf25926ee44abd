"""Run spin on ``task.pml``: nothing breaks, and every planted bug is found. ``nox -s model``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = Path(__file__).with_name("task.pml")
SAFETY = "assertions"
# What is planted, what is checked, and whether that has to fail.
RUNS = [
    ("", SAFETY, False),
    ("", "cancel_ends", False),
    ("", "orphan_found", False),
    ("LATE_END", SAFETY, True),
    ("NO_FENCE", SAFETY, True),
    ("NO_SWEEP", "cancel_ends", True),
    ("NO_SWEEP", "orphan_found", True),
]


def verify(spin: str, compiler: str, bug: str, claim: str) -> tuple[int, int]:
    """Return how many states were stored, and how many errors spin found."""
    defines = [f"-D{bug}"] if bug else []
    # Weak fairness for that many processes; safety needs neither that nor the claims.
    options = ["-DSAFETY", "-DNOCLAIM"] if claim == SAFETY else ["-DNFAIR=4"]
    search = [] if claim == SAFETY else ["-a", "-f", "-N", claim]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(MODEL, folder)
        for command in (
            [spin, *defines, "-a", MODEL.name],
            [compiler, "-w", "-O2", "-DCOLLAPSE", *options, "-o", "pan", "pan.c"],
        ):
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run(
            ["./pan", "-m200000", *search], cwd=folder, check=True, capture_output=True, text=True
        )
    states = re.search(r"^ *(\d+) states, stored", done.stdout, re.MULTILINE)
    errors = re.search(r"errors: (\d+)$", done.stdout, re.MULTILINE)
    incomplete = "max search depth too small" in done.stdout
    if states is None or errors is None or incomplete or "out of memory" in done.stdout:
        sys.exit(f"spin did not come to an end:\n{done.stdout}\n{done.stderr}")
    return int(states[1]), int(errors[1])


def main() -> None:
    """Run all; end with an error when one is not as it should be."""
    spin, compiler = shutil.which("spin"), shutil.which("cc")
    if spin is None:
        sys.exit("spin is not installed: apt-get install spin, or see https://spinroot.com")
    if compiler is None:
        sys.exit("spin needs a C compiler, and there is none: apt-get install gcc")
    wrong = 0
    for bug, claim, fails in RUNS:
        states, errors = verify(spin, compiler, bug, claim)
        wrong += (errors > 0) is not fails
        found = "an error is found" if errors else "no error"
        wanted = "" if (errors > 0) is fails else ": WRONG"
        print(f"{bug or 'as it is':9} {claim:13} {states:11,} states, {found}{wanted}", flush=True)
    if wrong:
        sys.exit(f"{wrong} of {len(RUNS)} runs are not as they should be")


if __name__ == "__main__":
    main()
