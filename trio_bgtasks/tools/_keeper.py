"""The keeper of one shell command: a program of its own, run by path, that outlives its runtime.

Guarantee: it ends when the last process of the command has ended, never earlier, and it holds the
descriptors that it was given (the executor's lock) until then. When its runtime says so, or dies,
it ends every process of the command: TERM, a grace period, then KILL until none is left.

Use: ``python -I -S _keeper.py GRACE_S SPEC_SIZE LOCK_FDS`` (the last one joined by commas) with

* descriptor 0: one end of a stream socket pair, the *channel*. The runtime first sends the *spec*,
  SPEC_SIZE bytes: cwd, shell, command and every NAME=VALUE of the environment, joined by NUL. Its
  end of file afterwards, however it came about, is the order to end the command. The keeper answers
  with lines: ``pid N`` (the command's leader, which says so itself, before anything of the command
  runs), ``error TEXT`` (it could not be started),
  ``status N`` (the leader has ended and its number is free for others: its exit code, or minus the
  signal that killed it), ``done`` (all have ended).
* descriptors 1 and 2: where the command's output goes.

How it sees them all: on Linux the keeper is a child subreaper, so whatever loses its parent, by a
double fork too, becomes its child: having no child means that nothing is left, and a walk through
/proc finds all there are, whatever their session and process group. Elsewhere (macOS, or where
/proc is not mounted) there is only the command's process group: a process that leaves it is neither
waited for nor ended.

Caveats: a process that the keeper may not signal (setuid) is waited for. Work handed to a process
that the command did not start (a container daemon, cron) is out of reach. If the keeper itself is
killed with -9, the kernel kills the leader with it (Linux), the runtime, if it lives, kills the
leader's process group, and what had left that group goes on.

It imports little, because every command waits for its start; it is single-threaded, which makes
``fork`` safe here, and for the leader PR_SET_PDEATHSIG too, which follows the forking thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # typing is too slow to import here
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Process = tuple[int, int, bytes, bytes]

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What asks a program to end. The keeper ends with its command only."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5
"""Between two walks through /proc while the command is being ended; each pause doubles."""

GROUP_POLL_S = 0.2
FREEZE_PASSES = 100
SHOWN = 200
"""Characters of what was given, in an error."""


class Command:
    """The leader and all its descendants, as long as one of them lives."""

    def __init__(self, channel: int) -> None:
        self.leader = 0
        self._status_told = False
        self._channel = channel
        self._subreaper = os.path.exists("/proc/self/stat") and prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._wakeup, on_signal = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(on_signal, False)
        signal.set_wakeup_fd(on_signal, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def start(self, spec: list[bytes]) -> None:
        """Fork the leader; it tells its number, and if it cannot become the shell, why.

        The keeper could be killed by the command before it had told the number.

        Signals are blocked across the fork, so that none is lost between "ignored", as here, and
        "default", as the command shall have it. What the runtime had blocked is unblocked.
        """
        keeper = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        self.leader = os.fork()
        if self.leader != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            return
        cwd, shell, command, *variables = spec
        what = ""
        try:
            os.setsid()
            if prctl(PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != keeper:
                os._exit(127)  # it died before that call
            tell(self._channel, f"pid {os.getpid()}")
            for number in (*IGNORED, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if cwd:
                what = f"cwd {shown(cwd)}"
                os.chdir(cwd)
            what = f"shell {shown(shell)}"
            environment = dict(variable.split(b"=", 1) for variable in variables)
            os.execvpe(shell, [shell, b"-c", command], environment)
        except OSError as error:
            problem = f"{what}: {error.strerror}"
            if error.errno == errno.E2BIG:  # which says nothing about the shell
                problem = "command or env: too long for this system"
            tell(self._channel, f"error {problem}")
        finally:
            os._exit(127)

    def lives(self) -> bool:
        """Take the children that have ended; whether anything of the command is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return not self._subreaper and group_lives(self.leader)
            if pid == 0:
                return True
            if pid == self.leader and not self._status_told:  # later, the number is another's
                self._status_told = True
                tell(self._channel, f"status {os.waitstatus_to_exitcode(status)}")

    def wait(self) -> bool:
        """Wait until all have ended, or the channel has; whether anything is left."""
        while self.lives():
            ready = self._select([self._channel], None)
            if self._channel in ready and not receive(self._channel, 1):
                return True
        return False

    def end(self, grace_s: float) -> None:
        """Return when all have ended; they get TERM, ``grace_s`` seconds, then KILL."""
        if self._ask(grace_s):
            self._kill()

    def _ask(self, grace_s: float) -> bool:
        """Send TERM and wait for the grace period, or until all have ended; whether any is left.

        The period begins when all have been found: on a busy machine that takes a while, which is
        not theirs to lose. What is started later gets TERM when its parent has gone, but not
        before: it may be what a shell cleans up with. So does a program that took another one's
        place, because TERM may have hit a shell between its fork and its exec, where it is lost.
        """
        asked: dict[int, bytes] = {}
        orphans_of: int | None = None  # in the first pass, all
        deadline = 0.0
        pause = FIRST_PAUSE_S
        while True:
            for pid, parent, name, state in self._members():
                if asked.get(pid) != name and (pid in asked or orphans_of in (None, parent)):
                    asked[pid] = name
                    send(pid, signal.SIGTERM)
                if state == b"T":
                    send(pid, signal.SIGCONT)  # a stopped process sees nothing but KILL
            if orphans_of is None:
                orphans_of = os.getpid()
                deadline = time.monotonic() + grace_s
            left = deadline - time.monotonic()
            if not self._lives_for(min(pause, left)):
                return False
            if left <= 0:
                return True
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _kill(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            self._freeze()
            for pid, *_ in self._members():
                send(pid, signal.SIGKILL)
            if not self._lives_for(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _freeze(self) -> None:
        """Stop all, until a pass finds no new one: what is stopped cannot fork away from KILL.

        It also keeps its process number, so even a fork bomb runs into the system's limit. The
        number of passes is bounded for the sake of one that never stays: KILL has its own loop.
        """
        stopped: set[int] = set()
        for _ in range(FREEZE_PASSES):
            known = len(stopped)
            for pid, *_ in self._members():
                if pid not in stopped:
                    stopped.add(pid)
                    send(pid, signal.SIGSTOP)
            if len(stopped) == known:
                return

    def _lives_for(self, seconds: float) -> bool:
        """Wait until nothing is left or the time has passed; whether anything is left."""
        until = time.monotonic() + seconds
        while self.lives():
            left = until - time.monotonic()
            if left <= 0:
                return True
            self._select([], left)
        return False

    def _select(self, descriptors: list[int], seconds: float | None) -> list[int]:
        """Wait for a descriptor, the end of a child, or the time."""
        if not self._subreaper:  # the rest of a process group are not our children: look again
            seconds = GROUP_POLL_S if seconds is None else min(seconds, GROUP_POLL_S)
        ready, _, _ = select.select([self._wakeup, *descriptors], [], [], seconds)
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        return ready

    def _members(self) -> Iterable[Process]:
        """All, as in `descendants`; a group is one number, negative."""
        if self._subreaper:
            return descendants()
        return [(-self.leader, os.getpid(), b"", b"T")]


def prctl(option: int, value: int) -> bool:
    """Ask the Linux kernel for something about this process; False where that is not to be had."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)


def descendants() -> Iterator[Process]:
    """Number, parent, program name and state letter of every descendant, each as soon as found.

    Parents mostly have the lower number and come first; where numbers have wrapped around, a
    process is kept until its parent is found. Zombies are included: of a process whose main thread
    has ended the rest may be living, and a signal to a real zombie does nothing.
    """
    ours = {os.getpid()}
    strangers: dict[int, list[Process]] = {}
    for number in os.listdir("/proc"):
        if not number.isdigit():
            continue
        try:
            descriptor = os.open(f"/proc/{number}/stat", os.O_RDONLY)
            try:
                text = os.read(descriptor, 4096)
            finally:
                os.close(descriptor)
        except OSError:
            continue  # it has ended since it was listed
        program, _, rest = text.rpartition(b")")  # "pid (any name) state ppid ..."
        state, parent = rest.split()[:2]
        process = (int(number), int(parent), program, state)
        if process[1] not in ours:
            strangers.setdefault(process[1], []).append(process)
            continue
        found = [process]
        while found:
            process = found.pop()
            ours.add(process[0])
            found += strangers.pop(process[0], ())
            yield process


def shown(path: bytes) -> str:
    """What was given as a path, fit for a message."""
    text = repr(os.fsdecode(path))
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def group_lives(group: int) -> bool:
    """Whether a process group has members that may be signalled."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # macOS: the latter if only zombies are left
        return False
    return True


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, or to a group if negative; one that has gone is no error."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def receive(channel: int, size: int) -> bytes:
    """Read from the channel; b"" at its end, however it came about."""
    try:
        return os.read(channel, size)
    except ConnectionError:
        return b""


def tell(channel: int, line: str) -> None:
    """Write a line to the runtime, if it still lives."""
    try:
        os.write(channel, line.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass


def main(grace_s: float, spec_size: int, lock_fds: list[int]) -> None:
    """Read the spec, start the command, wait for its end or make it."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    # The channel cannot wake a stopped keeper; this does, when the runtime has died. It comes also
    # when only the thread that forked us has ended, and then again: SIGCONT does no harm.
    prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    channel = os.dup(0)  # not inherited, as every descriptor that Python makes
    for descriptor in lock_fds:
        os.set_inheritable(descriptor, False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    received = b""
    while len(received) < spec_size:
        piece = receive(channel, spec_size - len(received))
        if not piece:
            return  # the runtime does not want it any more
        received += piece

    command = Command(channel)
    try:
        command.start(received.split(b"\0"))
    except OSError as error:
        tell(channel, f"error fork: {error.strerror}")
        return
    if command.wait():
        command.end(grace_s)
    tell(channel, "done")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), [int(fd) for fd in sys.argv[3].split(",") if fd])
