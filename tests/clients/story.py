"""What each client is asked to do, and how it tells. It runs beside the client: stdlib only."""

from __future__ import annotations

import json
import sys
from typing import Any

SLOW = "sleep 1; echo slow"
TWICE = "test -e ran && echo ran again && exit; touch ran; echo begun; sleep 1000"
"""A command that ends only when it is run again in the same folder."""
FOREVER = "sleep 1000"
PAUSE_S = 0.1


def target() -> dict[str, Any]:
    """Return what to connect to: ``{"url", "token"}``, or ``{"command", "args", "env"}``."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found


def saw(step: str, **facts: object) -> None:
    """Tell what was seen."""
    print(json.dumps({"step": step, **facts}), flush=True)


def kill_the_server() -> None:
    """Have the server killed by kill -9; over HTTP it is started again. Blocks."""
    saw("kill")
    sys.stdin.readline()
