"""The command ``trio-bgtasks``: shell tasks in the background, and a look at every task.

Exit codes: 0 all completed, 1 any other end or an error, 2 usage, 3 unknown task, 130 and 143 after
SIGINT and SIGTERM. Errors are one line on standard error.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

_EXTRA = ("cyclopts", "platformdirs", "rich")


def main() -> int:
    """Run the command line of this process; return the exit code."""
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
    except KeyboardInterrupt:  # before the command listened for signals, or after
        return 130
