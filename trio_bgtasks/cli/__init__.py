"""The command ``trio-bgtasks``: shell tasks in the background, and a look at every task.

Exit codes: 0 all completed, 1 any other end or an error, 2 usage, 3 unknown task, 130 and 143 after
SIGINT and SIGTERM. Errors are one line on standard error. A signal in the first moment, while this
package is still being imported, ends the command as it ends any Python program.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

_EXTRA = ("cyclopts", "platformdirs", "rich")


def main() -> int:
    """Run the command line of this process; return the exit code."""
    _open_closed_streams()
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        print(  # noqa: T201 - nothing else of the command can be loaded
            f"trio-bgtasks: {', '.join(missing)} not installed; "
            "install the command with: pip install 'trio-bgtasks[cli]'",
            file=sys.stderr,
        )
        return 2
    try:
        from ._app import run_app  # noqa: PLC0415 - not without the extra

        return run_app(sys.argv[1:])
    except KeyboardInterrupt:  # in here, but before the command listened for signals, or after
        return 130


def _open_closed_streams() -> None:
    """Give every standard stream that is closed the null device.

    Else the next file that is opened, the database even, would take its place.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - it was closed
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
