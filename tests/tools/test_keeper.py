"""The keeper as a program: real processes, driven without Trio, through its channel only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import PATIENCE_S, Marked, lock_is_free, process_state
from tests.tools.commands import HARD_TO_END, changed, python
from trio_bgtasks.tools import _keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KEEPER = [sys.executable, "-I", "-S", _keeper.__file__]


# On a system without child subreapers; on one where nobody has mounted /proc.
ELSEWHERE = changed("sys.platform = 'elsewhere'")
WITHOUT_PROC = changed("""
    def missing(real):
        def call(path, *args):
            if str(path).startswith("/proc"):
                raise FileNotFoundError(path)
            return real(path, *args)
        return call

    for name in ("listdir", "open", "stat"):
        setattr(os, name, missing(getattr(os, name)))
    os.path.exists = lambda path: not path.startswith("/proc")
""")


class Driver:
    """A keeper and the test's ends of its channel and of its output."""

    def __init__(
        self,
        command: str,
        *,
        grace_s: float,
        lock_fds: Sequence[int] = (),
        shell: str = "/bin/sh",
        program: Sequence[str] = KEEPER,
        send_all: bool = True,
    ) -> None:
        variables = [f"{name}={value}" for name, value in os.environ.items()]
        spec = b"\0".join(os.fsencode(text) for text in ["", shell, command, *variables])
        self.channel, its_channel = socket.socketpair()
        self.channel.settimeout(PATIENCE_S)
        with its_channel:
            self.process = subprocess.Popen(
                [*program, str(grace_s), str(len(spec)), ",".join(map(str, lock_fds))],
                stdin=its_channel.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=lock_fds,
                start_new_session=True,
            )
        self.channel.sendall(spec if send_all else spec[:-1])

    def until_line(self, line: bytes) -> None:
        """Read output until a line appears."""
        assert self.process.stdout is not None
        while (read := self.process.stdout.readline()).strip() != line:
            assert read, f"the output ended before {line!r}"

    def order_end(self) -> None:
        """What a runtime does to cancel, and the kernel when the runtime has died."""
        self.channel.shutdown(socket.SHUT_WR)

    def ended(self) -> tuple[int | None, bytes]:
        """Wait for the keeper: the leader's status that it told, and the rest of the output."""
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        lines = self.channel.makefile("rb").read().splitlines()
        told = [int(line.split()[1]) for line in lines if line.startswith(b"status ")]
        return (told[0] if told else None), output

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def keep(marked: Marked) -> Iterator[Callable[..., Driver]]:
    """Starts keepers; the processes of the test are looked for after it."""
    with contextlib.ExitStack() as started:

        def start(command: str, grace_s: float = 100, **options: object) -> Driver:
            driver = Driver(command, grace_s=grace_s, **options)  # type: ignore[arg-type]
            started.callback(driver.close)
            return driver

        yield start
        alive = marked.alive()  # before close(), which would hide leaders
        marked.kill()  # and would wait for the others
        assert not alive


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what must become true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$", -15), ("no-such", 127)],
)
def test_tells_the_status_of_the_leader(
    keep: Callable[..., Driver], command: str, status: int
) -> None:
    """The keeper tells the leader's exit code, or the signal that killed it as a negative one."""
    assert keep(command).ended()[0] == status


PROGRAMS = {"Linux": KEEPER, "elsewhere": ELSEWHERE, "no proc": WITHOUT_PROC}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_ends_with_the_last_process(
    keep: Callable[..., Driver], marked: Marked, tmp_path: Path, program: list[str]
) -> None:
    """A command that puts itself into the background has not ended when its leader has."""
    go_on = tmp_path / "go-on"
    command = f"echo $$; (while [ ! -e {go_on} ]; do sleep 0.02; done; echo last) & exit 4"
    driver = keep(command, program=program)
    assert driver.process.stdout is not None
    leader = int(driver.process.stdout.readline())
    wait_until(lambda: process_state(leader) == "X")  # the keeper has taken it
    assert driver.process.poll() is None
    go_on.touch()
    assert driver.ended() == (4, b"last\n")
    assert not marked.alive()


@pytest.mark.parametrize("command", HARD_TO_END.values(), ids=HARD_TO_END.keys())
def test_ends_every_process_when_told_to(
    keep: Callable[..., Driver], marked: Marked, command: str
) -> None:
    """When the keeper has gone after the end of its channel, so has everything it started."""
    driver = keep(command, grace_s=0.3)
    driver.until_line(b"ready")
    driver.order_end()
    driver.ended()
    assert not marked.alive()


def test_tells_the_leaders_end_before_that_of_all(
    keep: Callable[..., Driver], tmp_path: Path
) -> None:
    """The runtime hears at once that the leader was taken, and last of all that nothing is left."""
    go_on = tmp_path / "go-on"
    driver = keep(f"(while [ ! -e {go_on} ]; do sleep 0.02; done) & exit 4")
    told = driver.channel.makefile("rb")
    assert told.readline().startswith(b"pid ")
    assert told.readline() == b"status 4\n"
    assert driver.process.poll() is None
    go_on.touch()
    assert told.read() == b"done\n"


def test_tells_the_leaders_end_once(keep: Callable[..., Driver]) -> None:
    """A later process of the command that gets the leader's number does not change its status."""
    same_number = changed("""
        leader = 0

        def waitpid(pid, options, real=os.waitpid):
            global leader
            ended, status = real(pid, options)
            leader = leader or ended
            return ended and leader, status

        os.waitpid = waitpid
    """)
    command = "(while kill -0 $$ 2>&-; do sleep 0.02; done; exit 7) & exit 4"
    told = keep(command, program=same_number).channel.makefile("rb")
    assert told.readline().startswith(b"pid ")
    assert told.read() == b"status 4\ndone\n"


GROUP_ONLY = ["plain", "pipeline", "shell ignores TERM", "python ignores TERM", "stopped"]


@pytest.mark.parametrize("program", [ELSEWHERE, WITHOUT_PROC], ids=["elsewhere", "no proc"])
@pytest.mark.parametrize("command", [HARD_TO_END[name] for name in GROUP_ONLY], ids=GROUP_ONLY)
def test_ends_the_process_group_where_it_cannot_see_more(
    keep: Callable[..., Driver], marked: Marked, command: str, program: list[str]
) -> None:
    """Without subreapers, or without /proc, the processes that stay in the command's group end."""
    driver = keep(command, grace_s=0.3, program=program)
    driver.until_line(b"ready")
    driver.order_end()
    driver.ended()
    assert not marked.alive()


def test_term_comes_first_and_the_rest_have_the_grace_period(keep: Callable[..., Driver]) -> None:
    """A command that cleans up on TERM ends in its own way, long before the grace is over."""
    driver = keep("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.02; done")
    driver.until_line(b"ready")
    driver.order_end()
    status, output = driver.ended()
    assert (status, output.splitlines()[-1]) == (7, b"bye")


def test_a_stopped_process_sees_term(keep: Callable[..., Driver]) -> None:
    """TERM reaches the handler of a stopped process, because it is continued."""
    driver = keep("trap 'echo bye; exit 7' TERM; echo $$; kill -STOP $$; echo went on")
    assert driver.process.stdout is not None
    leader = int(driver.process.stdout.readline())
    wait_until(lambda: process_state(leader) == "T")
    driver.order_end()
    assert driver.ended() == (7, b"bye\n")


def test_what_a_command_cleans_up_with_is_left_alone(keep: Callable[..., Driver]) -> None:
    """A program that is started while its parent handles TERM has the grace period to itself."""
    driver = keep(
        "trap '(sleep 0.5; echo cleaned); exit 7' TERM; echo ready; while :; do sleep 0.02; done"
    )
    driver.until_line(b"ready")
    driver.order_end()
    status, output = driver.ended()
    assert (status, output.splitlines()[-1]) == (7, b"cleaned")


def test_a_long_walk_does_not_take_the_grace_period(keep: Callable[..., Driver]) -> None:
    """The grace period begins when all have got TERM, however long it took to find them."""
    slow = changed("""
        late = 0

        def walk(path, real=os.listdir):
            global late
            late = 1000
            return real(path)

        os.listdir = walk
        time.monotonic = lambda real=time.monotonic: real() + late
    """)
    driver = keep(
        "trap 'echo cleaned; exit 7' TERM; echo ready; while :; do sleep 0.02; done", program=slow
    )
    driver.until_line(b"ready")
    driver.order_end()
    status, output = driver.ended()
    assert (status, output.splitlines()[-1]) == (7, b"cleaned")


def test_what_is_left_behind_during_the_grace_period_sees_term_too(
    keep: Callable[..., Driver],
) -> None:
    """What a command starts and leaves while it handles TERM is told to end, not only killed."""
    driver = keep(
        "trap 'sleep 1000 & setsid sleep 1000 & exit 5' TERM; echo ready; "
        "while :; do sleep 0.02; done"
    )
    driver.until_line(b"ready")
    driver.order_end()
    assert driver.ended()[0] == 5  # in time: the grace period is longer than our patience


def test_a_program_that_was_started_in_place_of_another_sees_term(
    keep: Callable[..., Driver],
) -> None:
    """TERM may hit a forked shell that is about to become something else: that gets its own."""
    driver = keep("trap 'exec sleep 1000' TERM; echo ready; while :; do sleep 0.02; done")
    driver.until_line(b"ready")
    driver.order_end()
    assert driver.ended()[0] == -15  # in time: the grace period is longer than our patience


def test_every_process_sees_term_once(keep: Callable[..., Driver]) -> None:
    """To many programs a second TERM means "at once"; nobody asked for that."""
    driver = keep(
        "exec "
        + python("""
            import signal, time
            seen = []
            signal.signal(signal.SIGTERM, lambda *_: seen.append("TERM"))
            print("ready")
            while not seen:
                time.sleep(0.01)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                time.sleep(0.01)
            print(*seen)
        """)
    )
    driver.until_line(b"ready")
    driver.order_end()
    assert driver.ended() == (0, b"TERM\n")


def test_a_program_that_forks_wildly_is_ended(keep: Callable[..., Driver], marked: Marked) -> None:
    """Processes that multiply faster than they are listed do not get away from KILL."""
    driver = keep(
        python("""
            import os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            print("ready")
            for _ in range(9):  # 512 processes in 512 sessions
                if os.fork() == 0:
                    os.setsid()
                time.sleep(0.02)
            time.sleep(1000)
        """),
        grace_s=0,
    )
    driver.until_line(b"ready")
    driver.order_end()
    driver.ended()
    assert not marked.alive()


def test_none_sees_another_being_killed(keep: Callable[..., Driver]) -> None:
    """All are stopped before the first is killed, so no supervisor among them can replace it."""
    driver = keep(
        python("""
            import ctypes, os, signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for _ in range(300):  # takes the keeper a while to pass
                if os.fork() == 0:
                    signal.pause()
            if os.fork() == 0:
                signal.signal(signal.SIGUSR1, lambda *_: print("my parent was killed"))
                ctypes.CDLL(None).prctl(1, signal.SIGUSR1, 0, 0, 0)  # PR_SET_PDEATHSIG
                print("ready")
            signal.pause()
            signal.pause()
        """),
        grace_s=0,
    )
    driver.until_line(b"ready")
    driver.order_end()
    assert driver.ended()[1] == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_ignores_what_asks_programs_to_end(
    keep: Callable[..., Driver], tmp_path: Path, number: signal.Signals
) -> None:
    """A signal that reaches the keeper changes nothing for its command."""
    driver = keep(f"echo ready; while [ ! -e {tmp_path}/go-on ]; do sleep 0.02; done; echo done")
    driver.until_line(b"ready")
    driver.process.send_signal(number)
    (tmp_path / "go-on").touch()
    assert driver.ended() == (0, b"done\n")


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "PIPE"])
def test_the_command_has_default_signals(keep: Callable[..., Driver], name: str) -> None:
    """What the keeper and Python ignore or have blocked is as usual in the command."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
    try:
        driver = keep(f"kill -{name} $$; echo still here")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGCHLD])
    assert driver.ended() == (-getattr(signal, f"SIG{name}"), b"")


def test_the_lock_is_the_keepers_alone(keep: Callable[..., Driver], tmp_path: Path) -> None:
    """The command inherits no descriptor but its three; the lock is held until all have gone."""
    path = tmp_path / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    driver = keep("ls /proc/self/fd; nohup sleep 1000 & echo ready", 0.0, lock_fds=[lock])
    os.close(lock)
    assert driver.process.stdout is not None
    seen = b""
    while b"ready" not in seen or b"3" not in seen:
        seen += driver.process.stdout.readline()
    assert sorted(seen.split()) == [b"0", b"1", b"2", b"3", b"ready"]  # 3: ls reads the folder
    assert not lock_is_free(path)
    driver.order_end()
    driver.ended()
    assert lock_is_free(path)


def test_a_killed_keeper_takes_the_leader_with_it(
    keep: Callable[..., Driver], marked: Marked
) -> None:
    """When the keeper is killed with -9, the kernel kills the command's leader."""
    driver = keep("echo ready; exec sleep 1000")
    driver.until_line(b"ready")
    driver.process.kill()
    wait_until(lambda: not marked.alive())
    assert driver.ended()[0] is None


def test_a_runtime_that_dies_before_the_spec_is_complete_starts_nothing(
    keep: Callable[..., Driver],
) -> None:
    """Without a whole spec there is no command."""
    driver = keep("echo started", send_all=False)
    driver.order_end()
    assert driver.ended() == (None, b"")


def test_a_runtime_that_has_gone_is_not_told(keep: Callable[..., Driver], marked: Marked) -> None:
    """The keeper ends in order also when nobody can hear its last line."""
    driver = keep("trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done")
    driver.until_line(b"ready")
    driver.channel.close()
    assert driver.process.wait(PATIENCE_S) == 0
    assert not marked.alive()


def test_walks_through_proc_with_parents_of_higher_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Descendants are found in whatever order /proc lists them, and only they."""
    before = {number for number, *_ in _keeper.descendants()}  # those of other tests' libraries
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    numbers = sorted((entry.name for entry in Path("/proc").iterdir()), reverse=True)
    monkeypatch.setattr(os, "listdir", lambda _path: [*numbers, "999999999"])
    try:
        found = {number for number, *_ in _keeper.descendants()}
        assert found - before == {child.pid for child in children}
    finally:
        for child in children:
            child.kill()
            child.wait()
