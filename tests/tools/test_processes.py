"""`Marked` finds and ends what a test has started, whatever ends by itself meanwhile."""

from __future__ import annotations

import subprocess
import sys

from tests.processes import Marked


def test_what_has_ended_meanwhile_is_no_error(marked: Marked) -> None:
    """Between the look and the signal a process may end by itself; the others are killed."""
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    with subprocess.Popen(["sleep", "1000"]) as running:

        class LooksTooEarly(Marked):
            looked = False

            def alive(self) -> dict[int, str]:
                found = super().alive()
                if not self.looked:
                    self.looked = True
                    found = {int(ended.stdout): "it has ended", **found}
                return found

        LooksTooEarly(marked.mark).kill()
        assert running.wait() < 0
    assert not marked.alive()
