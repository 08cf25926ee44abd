"""`run_command` against real processes: nothing is left behind, whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.processes import PATIENCE_S, Marked, descriptors, lock_is_free, process_state, until
from tests.tools.commands import HARD_TO_END, LOSES_ITS_KEEPER, changed, python
from trio_bgtasks.tools import _process
from trio_bgtasks.tools._process import CommandEnd, CommandNotStarted, KeeperLost, run_command

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.usefixtures("marked")

ROOT = Path(__file__).parents[2]


class Output:
    """Collects a command's output; ``seen`` waits for a text in it."""

    def __init__(self) -> None:
        self.text = ""
        self._more = trio.Event()

    async def __call__(self, text: str) -> None:
        self.text += text
        self._more.set()
        self._more = trio.Event()
        await trio.lowlevel.checkpoint()

    async def seen(self, text: str) -> None:
        with trio.fail_after(PATIENCE_S):
            while text not in self.text:
                await self._more.wait()


def flood(descriptor: int) -> subprocess.Popen[bytes]:
    """Start a process of the test's own that writes for ever."""
    return subprocess.Popen(["yes"], stdout=descriptor, env={"PATH": os.defpath})


class Stuck:
    """A reader that takes a text and is not done with it until it is cancelled."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.waited_for = False

    async def __call__(self, text: str) -> None:
        self.texts.append(text)
        await trio.sleep(PATIENCE_S / 4)
        self.waited_for = True  # and so the test fails instead of hanging


async def run(
    command: str, on_output: Callable[[str], Awaitable[None]] | None = None, **options: Any
) -> CommandEnd:
    """`run_command` with this process's environment; fails when it hangs."""
    arguments = {
        "shell": "/bin/sh",
        "cwd": None,
        "env": dict(os.environ),
        "timeout_s": None,
        "grace_s": 0.3,
        "lock_fds": (),
        "on_output": on_output or Output(),
        **options,
    }
    with trio.fail_after(PATIENCE_S):
        return await run_command(command, **arguments)


# ---- how a command ends ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "exit_code", "number"),
    [
        ("true", 0, None),
        ("exit 3", 3, None),
        ("exit 255", 255, None),
        ("no-such-command", 127, None),
        ("kill -9 $$", None, 9),
        ("kill -TERM $$", None, 15),
        ("kill -PIPE $$", None, 13),
    ],
)
async def test_reports_exit_code_or_signal(
    command: str, exit_code: int | None, number: int | None
) -> None:
    """The end names the shell's exit code, or else the signal that killed it."""
    end = await run(command)
    assert (end.exit_code, end.signal, end.timed_out) == (exit_code, number, False)


async def test_reports_duration_and_bytes() -> None:
    """The duration reaches to the last process, the bytes are those that were written."""
    end = await run("printf '\\377\\000ab'; nohup sleep 0.2 >&- 2>&- &")
    assert end.duration_s >= 0.2
    assert end.output_bytes == 4


async def test_is_not_over_before_the_last_process() -> None:
    """`nohup sleep 3 & echo hi` is not completed when it has said hi."""
    output = Output()
    end = await run("nohup sleep 3 & echo hi", output)
    assert output.text == "hi\n"
    assert end.duration_s >= 3


async def test_output_may_end_long_before_the_command() -> None:
    """A command that closes its output is waited for all the same."""
    end = await run("exec >/dev/null 2>&1; sleep 0.3; exit 5")
    assert end.exit_code == 5
    assert end.duration_s >= 0.3


async def test_output_that_was_unread_when_the_command_ended(marked: Marked) -> None:
    """Nothing is lost when the reader is slower than the command: it gets the rest afterwards."""
    output = Output()

    async def slow(text: str) -> None:
        await until(lambda: not marked.alive())
        await output(text)

    await run("echo first; sleep 0.1; head -c 60000 /dev/zero | tr '\\0' x", slow)
    assert output.text == "first\n" + 60_000 * "x"


async def test_a_stranger_who_holds_the_output_is_not_waited_for() -> None:
    """A process that was not started by the command, and got its output's descriptor, is ignored.

    Also one that never ceases to write.
    """
    strangers: list[subprocess.Popen[bytes]] = []
    rescued = False

    async def let_in(text: str) -> None:
        if not strangers:
            held = os.open(f"/proc/{int(text)}/fd/1", os.O_WRONLY)
            strangers.append(flood(held))
            os.close(held)
        await trio.lowlevel.checkpoint()

    async def rescue() -> None:
        nonlocal rescued
        await trio.sleep(PATIENCE_S / 4)
        rescued = True
        strangers[0].kill()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rescue)
        await run("echo $$; sleep 0.2", let_in)
        nursery.cancel_scope.cancel()
    strangers[0].kill()
    strangers[0].wait()
    assert not rescued


async def test_standard_input_is_empty() -> None:
    """A command that reads gets the end of file at once."""
    output = Output()
    await run("cat; wc -c; echo done", output)
    assert output.text == "0\ndone\n"


async def test_runs_where_and_as_told(tmp_path: Path) -> None:
    """The command has the given folder, environment and shell, and nothing else of ours."""
    shell = tmp_path / "my-shell"
    shell.write_text("#!/bin/sh\ntr '\\0' '\\n' </proc/$$/environ; pwd; printf '%s|' \"$@\"")
    shell.chmod(0o700)
    (tmp_path / "folder").mkdir()
    output = Output()
    env = {"GREETING": "hällo = wörld", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    await run("the  command", output, cwd=f"{tmp_path}/folder", env=env, shell="my-shell")
    assert output.text.splitlines() == [
        "GREETING=hällo = wörld",
        f"PATH={env['PATH']}",
        f"{tmp_path}/folder",
        "-c|the  command|",
    ]


async def test_a_huge_environment_arrives() -> None:
    """An environment of a megabyte, far more than a pipe holds, arrives."""
    output = Output()
    huge = {f"HUGE_{number}": "x" * 50_000 for number in range(20)}
    await run("env | grep -c '^HUGE_.*x$'", output, env=os.environ | huge)
    assert output.text == "20\n"


# ---- what is not started -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cwd": "/no/such"}, "cwd '/no/such': No such file or directory"),
        ({"cwd": "/etc/passwd"}, "cwd '/etc/passwd': Not a directory"),
        ({"cwd": "/no\nsuch"}, "cwd '/no\\nsuch': No such file or directory"),
        ({"shell": "/no/such"}, "shell '/no/such': No such file or directory"),
        ({"shell": "no-such-shell"}, "shell 'no-such-shell': No such file or directory"),
        ({"shell": "/etc"}, "shell '/etc': Permission denied"),
        ({"env": {"BIG": "x" * 10_000_000}}, "command or env: too long for this system"),
        ({"command": "x" * 1_000_000}, "command or env: too long for this system"),
        ({"command": "echo \0"}, "command: must not contain NUL"),
        ({"env": {"A=B": "c"}}, "env: 'A=B' cannot be the name of a variable"),
        ({"env": {"": "c"}}, "env: '' cannot be the name of a variable"),
        ({"env": {"A": "x\0y"}}, "env 'A': must not contain NUL"),
        ({"env": {"A": "\ud800"}}, "env 'A': cannot be encoded for this system"),
    ],
)
async def test_says_why_a_command_was_not_started(arguments: dict[str, Any], message: str) -> None:
    """What stands against the start is named with its argument."""
    with pytest.raises(CommandNotStarted) as raised:
        await run(**{"command": "echo hi", **arguments})
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    "arguments",
    [
        {"cwd": 1_000_000 * "x"},
        {"shell": 1_000_000 * "x"},
        {"env": {1_000_000 * "x" + "=": ""}},
        {"env": {1_000_000 * "x": "\0"}},
    ],
    ids=["cwd", "shell", "name", "value"],
)
async def test_a_huge_argument_does_not_make_a_huge_message(arguments: dict[str, Any]) -> None:
    """The message shows the beginning of what was given."""
    with pytest.raises(CommandNotStarted) as raised:
        await run("echo hi", **arguments)
    assert f"{next(iter(arguments))}" in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("command", ["-x", "+x", "--version"])
async def test_a_command_is_no_option_of_the_shell(command: str) -> None:
    """A command that begins like an option is looked for, as any other one."""
    output = Output()
    end = await run(command, output)
    assert end.exit_code == 127
    assert f"{command}: not found" in output.text


@pytest.mark.parametrize(
    ("keeper", "message"),
    [
        (["/no/such/python"], "the keeper process could not be started: .*No such file"),
        (["/bin/sh", "-c", "exit 3"], r"the keeper process ended before it \(status 3\)"),
    ],
)
async def test_a_keeper_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, keeper: list[str], message: str
) -> None:
    """Without a keeper there is no command; also when its death cuts off what it was to read."""
    monkeypatch.setattr(_process, "_KEEPER", keeper)
    for env in ({}, {f"N{number}": "x" * 100_000 for number in range(10)}):
        with pytest.raises(CommandNotStarted, match=message):
            await run("echo hi", env=env)


async def test_every_lack_of_descriptors_is_survived() -> None:
    """With room for k more descriptors, for every k: it runs, or a clear error, no leak."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    await run("true")
    before = descriptors()
    results: list[str] = []
    while "ran" not in results:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1, hard))
        fillers = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(os.open(os.devnull, os.O_RDONLY))
            room = max(*before, *fillers) + 1 + len(results)
            resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))
            await run("true")
            results.append("ran")
        except CommandNotStarted as error:
            results.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            for filler in fillers:
                os.close(filler)
        assert descriptors() == before
    assert len(results) > 4
    assert all("Too many open files" in error for error in results[:-1])


# ---- output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5])
async def test_characters_are_never_split(
    monkeypatch: pytest.MonkeyPatch, piece_bytes: int, tmp_path: Path
) -> None:
    """Wherever the reads cut the bytes, the text is what the whole would have been."""
    monkeypatch.setattr(_process, "_PIECE_BYTES", piece_bytes)
    text = "aä€😀\0é"
    written = text.encode() + b"\xff\xc3(\xe2\x82|\xf0\x9f" + text.encode() + b"\xf0\x9f\x98"
    (tmp_path / "written").write_bytes(written)
    output = Output()
    end = await run(f"cat {tmp_path}/written", output)
    assert output.text == written.decode(errors="replace").replace("\0", "\ufffd")
    assert end.output_bytes == len(written)


async def test_any_bytes_become_text_that_can_be_stored() -> None:
    """Binary output arrives without NUL and without surrogates, in the same order."""
    output = Output()
    end = await run("head -c 300000 /dev/urandom; echo; echo the end", output)
    output.text.encode()
    assert "\0" not in output.text
    assert output.text.endswith("\nthe end\n")
    assert end.output_bytes == 300_009


async def test_stdout_and_stderr_are_one_text_in_order() -> None:
    """What was written first comes first, through whichever of the two."""
    output = Output()
    await run("for i in 1 2 3; do echo out$i; echo err$i >&2; done", output)
    assert output.text.split() == ["out1", "err1", "out2", "err2", "out3", "err3"]


async def test_output_is_passed_on_while_the_command_runs(tmp_path: Path) -> None:
    """Each line arrives at once: the command goes on only when we have seen it."""
    times = []

    async def answer(text: str) -> None:
        times.append(trio.current_time())
        (tmp_path / text.strip()).touch()
        await trio.lowlevel.checkpoint()

    await run(
        f"cd {tmp_path}; for i in 1 2 3 4 5; do echo $i; while [ ! -e $i ]; do :; done; done",
        answer,
    )
    assert len(times) == 5
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) < 0.1


async def test_a_hundred_megabytes_pass_through_little_memory() -> None:
    """The output is complete and never held, however fast it comes."""
    total = 0

    async def count(text: str) -> None:
        nonlocal total
        assert len(text) <= 64 * 1024
        total += len(text)
        await trio.lowlevel.checkpoint()

    tracemalloc.start()
    try:
        end = await run("yes 0123456789 | head -c 100000000", count)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == end.output_bytes == 100_000_000
    assert peak < 4_000_000


async def test_a_slow_reader_holds_the_command_up() -> None:
    """Nothing is read while the reader is busy, so an endless output waits in a full pipe."""
    stuck = Stuck()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "yes", stuck)
        await until(lambda: stuck.texts)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert len(stuck.texts) == 1
        nursery.cancel_scope.cancel()
    assert not stuck.waited_for


@pytest.mark.parametrize("error", [ValueError("full"), SystemExit("full")])
async def test_an_error_of_the_reader_ends_the_command(error: BaseException) -> None:
    """What `on_output` raises is raised, as it is, when nothing of the command is left."""

    async def refuse(_text: str) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    command = "yes | cat & trap '' TERM; echo hi; while :; do echo ha; sleep 0.05; done"
    with pytest.raises(type(error), match="full"):
        await run(command, refuse)


async def test_control_c_while_output_is_passed_on() -> None:
    """A KeyboardInterrupt passes through when nothing of the command is left."""

    async def interrupted(_text: str) -> None:
        assert trio.lowlevel.currently_ki_protected()  # it comes at a checkpoint, as here, only
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run("echo hi; sleep 1000", interrupted)


async def test_control_c_again_and_again(marked: Marked, tmp_path: Path) -> None:
    """However often it is pressed, the call ends when nothing of the command is left."""

    async def interrupted(text: str) -> None:
        for word in text.split():
            (tmp_path / word).touch()
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    command = (
        f"cd {tmp_path}; "
        "trap 'for i in 1 2 3 4 5; do echo $i; until [ -e $i ]; do sleep 0.01; done; done; exit' TERM; "
        "echo ready; while :; do sleep 0.02; done"
    )
    with pytest.raises(KeyboardInterrupt):
        await run(command, interrupted, grace_s=PATIENCE_S)
    assert (tmp_path / "5").exists()
    assert not marked.alive()


# ---- the end by order --------------------------------------------------------------------------


@pytest.mark.parametrize("command", HARD_TO_END.values(), ids=HARD_TO_END.keys())
async def test_cancelled_means_gone(marked: Marked, command: str) -> None:
    """When the cancelled call returns, no process of the command is alive."""
    output = Output()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, command, output)
            await output.seen("ready")
            assert marked.alive()
            scope.cancel()
    assert scope.cancelled_caught
    assert not marked.alive()


async def test_a_timeout_ends_the_command_and_says_so(marked: Marked) -> None:
    """A command whose time is up is ended as by a cancel, and its end tells the rest."""
    output = Output()
    end = await run("trap 'echo bye; exit 7' TERM; sleep 1000 & wait", output, timeout_s=0.5)
    assert (end.exit_code, end.signal, end.timed_out) == (7, None, True)
    assert end.duration_s >= 0.5
    assert output.text == "bye\n"
    assert not marked.alive()


async def test_a_timeout_before_anything_was_run() -> None:
    """A time that is up at once is a time-out as any other, not a broken keeper."""
    end = await run("echo hi", timeout_s=1e-9)
    assert (end.exit_code, end.signal, end.timed_out, end.output_bytes) == (None, None, True, 0)


async def test_a_slow_reader_does_not_time_out_a_command_that_has_ended(
    mock_clock: trio.testing.MockClock, marked: Marked
) -> None:
    """What counts is when the last process ended, not when its output had been delivered."""
    mock_clock.rate = 1  # as usual, until it jumps
    texts: list[str] = []

    async def slow(text: str) -> None:
        texts.append(text)
        if len(texts) == 1:
            await until(lambda: not marked.alive())
            mock_clock.jump(PATIENCE_S / 2)
            await trio.sleep_forever()

    command = "echo first; sleep 0.1; head -c 60000 /dev/zero | tr '\\0' x"
    end = await run(command, slow, timeout_s=PATIENCE_S / 2)
    assert (end.exit_code, end.timed_out) == (0, False)
    assert "".join(texts) == "first\n" + 60_000 * "x"


async def test_last_words_of_a_cancelled_command_are_taken() -> None:
    """Output written during the grace period is passed on, also to a reader that is stuck."""
    stuck = Stuck()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "trap 'echo bye; exit' TERM; echo hi; sleep 1000 & wait", stuck)
            await until(lambda: stuck.texts)
            scope.cancel()
    assert "".join(stuck.texts) == "hi\nbye\n"
    assert not stuck.waited_for


async def test_a_reader_is_not_waited_for_beyond_the_grace_period() -> None:
    """A stuck reader does not hold up the end of a command that writes on and on."""
    stuck = Stuck()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "trap '' TERM; while :; do echo yes; done", stuck)
            await until(lambda: stuck.texts)
            scope.cancel()
    assert not stuck.waited_for


async def test_an_error_of_the_reader_in_the_grace_period(marked: Marked) -> None:
    """An error while a cancelled command speaks its last words does not leave it behind."""
    output = Output()

    async def fail_in_the_end(text: str) -> None:
        await output(text)
        if "bye" in text:
            raise ValueError("full")

    async def run_and_fail() -> None:
        with pytest.raises(ValueError, match="full"):
            await run("trap 'echo bye; exit' TERM; echo hi; sleep 1000 & wait", fail_in_the_end)
        assert not marked.alive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_and_fail)
        await output.seen("hi")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "command",
    ["kill -STOP $PPID; sleep 1000", "trap 'kill -STOP $PPID; exit' TERM; sleep 1000 & wait"],
    ids=["before", "when told to end"],
)
async def test_a_stopped_keeper_obeys(
    monkeypatch: pytest.MonkeyPatch, marked: Marked, command: str
) -> None:
    """A command that stops its keeper, whenever it does, can still be ended.

    Also where the end of the thread that forked the keeper does not continue it by chance.
    """
    monkeypatch.setattr(_process, "_KEEPER", changed("sys.platform = 'elsewhere'"))
    rescued: list[int] = []

    async def rescue() -> None:
        await trio.sleep(PATIENCE_S / 4)
        for keeper in marked.numbers("_keeper.py"):
            rescued.append(keeper)
            os.kill(keeper, signal.SIGCONT)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rescue)
        end = await run(command, timeout_s=0.5)
        nursery.cancel_scope.cancel()
    assert end.timed_out
    assert not rescued


async def test_a_killed_keeper_whose_leader_had_ended(marked: Marked) -> None:
    """The rest of the command's process group is killed also when its leader ended long ago."""
    output = Output()

    async def kill_keeper() -> None:
        await output.seen("ready")
        await until(lambda: not marked.numbers("echo ready"))
        os.kill(marked.numbers("_keeper.py")[0], signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_keeper)
        with pytest.raises(KeeperLost):
            await run("sleep 1000 & echo ready", output)
    await until(lambda: not marked.alive())


async def test_a_stranger_with_the_leaders_number_is_not_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once a killed keeper had taken the leader, its number may be that of somebody else's group."""
    async with trio.open_nursery() as nursery:
        stranger = await nursery.start(
            partial(trio.run_process, ["sleep", "1000"], start_new_session=True)
        )
        assert isinstance(stranger, trio.Process)
        told = f"pid {stranger.pid}\\nstatus 0\\n"
        keeper = ["/bin/sh", "-c", f"printf '{told}' >&0; kill -9 $$"]
        monkeypatch.setattr(_process, "_KEEPER", keeper)
        with pytest.raises(KeeperLost):
            await run("true")
        assert stranger.poll() is None
        nursery.cancel_scope.cancel()


async def test_a_lost_keeper_is_told_also_when_cancelled(marked: Marked) -> None:
    """A cancelled call whose keeper is killed meanwhile does not end as if all was in order."""
    output = Output()

    async def run_and_lose() -> None:
        with pytest.raises(KeeperLost, match="may still run"):
            await run(LOSES_ITS_KEEPER, output, grace_s=PATIENCE_S)
        assert marked.alive()
        marked.kill()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_and_lose)
        await output.seen("ready")
        nursery.cancel_scope.cancel()
    assert not nursery.cancel_scope.cancelled_caught


async def test_a_killed_keeper_is_noticed(marked: Marked) -> None:
    """When the keeper is killed with -9, the rest of the command's process group is killed too."""
    with pytest.raises(KeeperLost, match="killed from outside"):
        await run("sleep 1000 & sleep 1000 | sleep 1000 & kill -9 $PPID; sleep 1000")
    await until(lambda: not marked.alive())


async def test_a_keeper_killed_before_it_was_told_what_to_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it leaves unread resets its channel: nothing was run, and that is what is said."""
    told = "import os, select, signal; select.select([0], [], []); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(_process, "_KEEPER", [sys.executable, "-I", "-S", "-c", told])
    with pytest.raises(
        CommandNotStarted, match=r"the keeper process ended before it \(status -9\)"
    ):
        await run("true")


async def test_a_keeper_killed_as_soon_as_the_command_runs(
    monkeypatch: pytest.MonkeyPatch, marked: Marked
) -> None:
    """A command that ran was started, also if its keeper was killed before it could do anything."""
    slow = changed("""
        def fork(real=os.fork):
            leader = real()
            if leader != 0:
                signal.pause()
            return leader

        os.fork = fork
    """)
    monkeypatch.setattr(_process, "_KEEPER", slow)
    with pytest.raises(KeeperLost):
        await run("sleep 1000 & kill -9 $PPID; sleep 1000")
    await until(lambda: not marked.alive())


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when a task reaches its k-th checkpoint."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, k: int) -> None:
        self.steps = 0
        self._task, self._scope, self._k = task, scope, k

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.steps += 1
            if self.steps == self._k:
                self._scope.cancel()


async def test_cancelled_at_every_checkpoint(marked: Marked) -> None:
    """Cancelled at its k-th checkpoint, for every k: no process and no descriptor is left."""
    command = "echo 1; sleep 1000 & sleep 0.05; echo 2; sleep 0.05; echo 3; kill $!"
    before = descriptors()
    k, cancelled = 0, True
    while cancelled:
        k += 1
        scope = trio.CancelScope()
        instrument = CancelAtStep(trio.lowlevel.current_task(), scope, k)
        with scope:
            trio.lowlevel.add_instrument(instrument)
            try:
                await run(command)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        cancelled = instrument.steps >= k
        assert not marked.alive()
        assert descriptors() == before
    assert k > 10


async def test_many_commands_cancelled_at_random(marked: Marked) -> None:
    """50 concurrent commands, each cancelled at its own moment, end alone and leave nothing."""
    rng = random.Random(20)
    commands = [
        "sleep 1000 & setsid sleep 1000 & sleep 1000",
        "yes",
        "echo hi; exec sleep 1000",
        "trap '' TERM; while :; do sleep 0.1; done",
        "sleep 0.2; exit 4",
    ]
    ended: list[int] = []

    async def run_one(number: int) -> None:
        with trio.move_on_after(rng.random() * 2):
            end = await run(commands[number % len(commands)])
            assert end.exit_code == 4
        ended.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(run_one, number)
    assert len(ended) == 50
    assert not marked.alive()


async def test_concurrent_commands_do_not_hold_one_anothers_descriptors() -> None:
    """Each command sees its three descriptors only, however many are started at the same time.

    Nor does it see any other one of this process, also when that was made to be inherited.
    """
    outputs = [Output() for _ in range(20)]
    ours = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(ours, True)
    try:
        async with trio.open_nursery() as nursery:
            for output in outputs:
                nursery.start_soon(run, "ls /proc/self/fd", output)
    finally:
        os.close(ours)
    assert {output.text for output in outputs} == {"0\n1\n2\n3\n"}  # 3: ls reads the folder


# ---- the death of the runtime ------------------------------------------------------------------


class Runtime:
    """A second process that runs a command (see runtime_process.py)."""

    def __init__(self, lock: Path, command: str, *options: str, grace_s: float = 0.3) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.tools.runtime_process"),
                *(str(lock), str(grace_s), command, *options),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )

    def until_line(self, word: bytes) -> bytes:
        assert self._process.stdout is not None
        while word not in (line := self._process.stdout.readline()):
            assert line, f"the output ended before {word!r}"
        return line

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.parametrize("command", HARD_TO_END.values(), ids=HARD_TO_END.keys())
async def test_nothing_survives_a_killed_runtime(
    marked: Marked, tmp_path: Path, command: str
) -> None:
    """After -9 everything ends by itself, and the lock is not free while one process lives."""
    lock = tmp_path / "lock"
    runtime = Runtime(lock, command)
    runtime.until_line(b"ready")
    assert not lock_is_free(lock)
    runtime.kill()
    free_while_alive: list[dict[int, str]] = []

    def free() -> bool:
        is_free = lock_is_free(lock)
        if is_free:
            free_while_alive.append(marked.alive())
        return is_free

    await until(free)
    assert free_while_alive == [{}]


async def test_a_stopped_keeper_obeys_a_killed_runtime(marked: Marked, tmp_path: Path) -> None:
    """A keeper that was stopped is woken by the death of its runtime."""
    lock = tmp_path / "lock"
    runtime = Runtime(lock, "kill -STOP $PPID; echo ready; sleep 1000")
    runtime.until_line(b"ready")
    (keeper,) = marked.numbers("_keeper.py")
    await until(lambda: process_state(keeper) == "T")
    runtime.kill()
    await until(lambda: lock_is_free(lock))
    assert not marked.alive()


async def test_a_killed_runtime_gives_the_grace_period_too(tmp_path: Path) -> None:
    """A command whose runtime was killed may still clean up."""
    lock = tmp_path / "lock"
    command = f"trap 'sleep 0.2; touch {tmp_path}/clean; exit' TERM; echo ready; sleep 1000 & wait"
    runtime = Runtime(lock, command, grace_s=100)
    runtime.until_line(b"ready")
    runtime.kill()
    await until(lambda: lock_is_free(lock))
    assert (tmp_path / "clean").exists()


async def test_a_forked_copy_of_the_runtime_holds_nothing(marked: Marked, tmp_path: Path) -> None:
    """A forked child that survives the runtime, as of a process pool, keeps no command alive."""
    runtime = Runtime(tmp_path / "lock", "echo ready; sleep 1000", "fork")
    copy = int(runtime.until_line(b"copy").split()[1])
    assert len(marked.alive()) > 2
    runtime.kill()
    await until(lambda: set(marked.alive()) == {copy})
    os.kill(copy, signal.SIGKILL)
    await until(lambda: not marked.alive())


@pytest.mark.parametrize(
    ("command", "option"),
    [("true", "fork early"), ("true", "fork unseen"), ("kill -9 $PPID", "fork early")],
    ids=["ended", "ended, forked by C code", "keeper killed"],
)
async def test_a_copy_forked_while_the_command_starts(
    tmp_path: Path, command: str, option: str
) -> None:
    """A child that another thread forks at that moment does not hide the end of the command."""
    runtime = Runtime(tmp_path / "lock", command, option)
    assert runtime.until_line(b"copy") == b"copy lives\n"
    runtime.kill()


async def test_a_runtime_killed_while_commands_start(marked: Marked, tmp_path: Path) -> None:
    """Whenever -9 comes, also in the middle of a start, nothing survives it."""
    rng = random.Random(7)
    for round_number in range(10):
        lock = tmp_path / f"lock{round_number}"
        runtime = Runtime(lock, "sleep 1000 & setsid sleep 1000 & sleep 1000")
        await until(lock.exists)
        await trio.sleep(rng.random() * 0.05)
        runtime.kill()
        await until(lambda: not marked.alive())


def test_python_helper_is_one_argument() -> None:
    """The commands of these tests reach the shell as they were written."""
    line = python("print('a b', \"c\")")
    assert subprocess.check_output(["/bin/sh", "-c", line]) == b"a b c\n"
