"""Commands whose processes are hard to find or to end. Each prints ``ready`` when it is so.

And keepers in hard conditions.
"""

from __future__ import annotations

import shlex
import sys
import textwrap

from trio_bgtasks.tools import _keeper


def python(code: str) -> str:
    """A shell command that runs Python code."""
    return shlex.join([sys.executable, "-I", "-S", "-u", "-c", textwrap.dedent(code)])


def changed(code: str) -> list[str]:
    """The keeper, in a Python that some code has changed before."""
    modules = "import ctypes, errno, os, runpy, select, signal, sys, time"
    start = "del sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"{modules}\n{textwrap.dedent(code)}\n{start}"
    return [sys.executable, "-I", "-S", "-c", code, _keeper.__file__]


_IGNORES_TERM = python("""
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready")
    time.sleep(1000)
""")

_DAEMON = python("""
    import os, signal, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ready")
            time.sleep(1000)
    os._exit(0)
""")

# A "comet": it forks itself away from every signal sent to its number, and from its group too.
_COMET = python("""
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready")
    end = time.monotonic() + 100
    while time.monotonic() < end:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        time.sleep(0.001)
""")

HARD_TO_END = {
    "plain": "echo ready; sleep 1000",
    "pipeline": "echo ready >&2; sleep 1000 | sleep 1000 | sleep 1000",
    "background": "sleep 1000 & sleep 1000 & echo ready",
    "nohup": "nohup sleep 1000 & echo ready",
    "shell ignores TERM": "trap '' TERM; echo ready; while :; do sleep 1; done",
    "python ignores TERM": _IGNORES_TERM,
    "own session": "setsid sleep 1000 & echo ready; wait",
    "own session, ignores TERM": f"setsid {_IGNORES_TERM} & wait",
    "daemon: double fork, own session, ignores TERM": _DAEMON,
    "stopped": "sleep 1000 & kill -STOP $!; echo ready; kill -STOP $$",
    "starts others when told to end": (
        "trap '' INT; trap 'sleep 1000 & setsid sleep 1000 & sleep 1000' TERM; echo ready; "
        "while :; do sleep 0.05; done"
    ),
    "starts others all the time": (
        "trap '' TERM; echo ready; while :; do setsid sleep 1000 & sleep 0.02; done"
    ),
    "comet": _COMET,
    "output closed": "echo ready; exec >/dev/null 2>&1; sleep 1000",
}

LOSES_ITS_KEEPER = (
    "trap 'kill -9 $PPID' TERM; "
    "(trap '' TERM; exec setsid sh -c 'echo ready; exec sleep 1000') & "
    "while :; do sleep 0.02; done"
)
"""Kills its keeper when it is told to end; what it leaves behind ignores TERM, in its own session."""
