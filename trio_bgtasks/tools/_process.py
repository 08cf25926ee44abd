"""Run one shell command under a keeper, and never leave a process of it behind.

The keeper (`_keeper.py`) is a small process between us and the command. It waits for every process
of the command and ends them all when we say so or when we die. What is left to do here: start it,
pass the output on as it comes, and not return before it has gone.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import termios
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, final

import attrs
import trio

from .._json import shorten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

_KEEPER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("_keeper.py")))
_PIECE_BYTES = 64 * 1024
_CONTINUE_S = 0.5
_SHOWN = 100

_channels: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_channels_in_forked_child() -> None:
    """A forked copy of this process must not keep the keepers' channels open when we have died."""
    for channel in list(_channels):
        channel.close()


os.register_at_fork(after_in_child=_close_channels_in_forked_child)


class CommandNotStarted(Exception):
    """The command was not started: the text names the argument and the reason."""


class KeeperLost(Exception):
    """The command's keeper was killed, so how the command ended is not known.

    Its leader and what was left in its process group were killed; what had left that goes on.

    Attributes:
        end: what is known all the same: how long, and how much output.
    """

    def __init__(self, message: str, end: CommandEnd) -> None:
        super().__init__(message)
        self.end = end


@attrs.frozen(kw_only=True)
class CommandEnd:
    """How a command ended; `run_command` returns it when the last of its processes has gone.

    Attributes:
        exit_code: of the shell, 0 to 255; None if a signal killed it.
        signal: number of the signal that killed the shell, else None; both are None if nothing was
            run, or nobody knows.
        timed_out: the command was ended because its time was up.
        duration_s: from the call to the end of the last process, seconds.
        output_bytes: what the command wrote to stdout and stderr, as it wrote it.
    """

    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    duration_s: float
    output_bytes: int = 0


@trio.lowlevel.enable_ki_protection
async def run_command(
    command: str,
    *,
    shell: str,
    cwd: str | None,
    env: Mapping[str, str],
    timeout_s: float | None,
    grace_s: float,
    lock_fds: Sequence[int],
    on_output: Callable[[str], Awaitable[None]],
) -> CommandEnd:
    """Run ``shell -c command`` to the end of the last process that it started.

    When this returns or raises anything but `KeeperLost`, none of those processes is left:
    cancellation and the time-out send TERM to all, KILL after the grace period, and wait; so does
    Ctrl-C, however often. If this process dies, the keeper does the same. stdin is empty.

    Args:
        command: the text for the shell.
        shell: its path, or a name looked up in the PATH of ``env``.
        cwd: working directory; None is the one of this process.
        env: the whole environment of the command.
        timeout_s: seconds after which the command, if it still runs, is ended; None: never.
        grace_s: seconds between TERM and KILL, also after the death of this process.
        lock_fds: descriptors that stay open, in the keeper alone, until the last process has gone.
        on_output: gets stdout and stderr as one text, in pieces of at most 64 KiB of it, at once.
            The command is held up while it waits. It has to take the text before its first
            checkpoint: it is also called when the scope is cancelled, and cancelled itself when
            the time is up and when the grace period is over. What is not UTF-8 and NUL are U+FFFD.

    Raises:
        CommandNotStarted: nothing was run.
        KeeperLost: the keeper was killed from outside; also when this was cancelled.
        BaseException: whatever ``on_output`` raised; the command was ended.
    """
    spec = command_spec(command, shell, cwd, env)
    with contextlib.ExitStack() as descriptors:
        try:
            keeper = await _start_keeper(descriptors, len(spec), grace_s, lock_fds)
        except OSError as error:
            message = f"the keeper process could not be started: {error}"
            raise CommandNotStarted(message) from error
        try:
            try:
                with trio.move_on_after(float("inf") if timeout_s is None else timeout_s) as limit:
                    await keeper.send(spec)
                    await keeper.relay(on_output)
                # It may be a slow reader alone that was cut off: the command had ended in time.
                timed_out = limit.cancelled_caught and not keeper.has_gone()
            finally:
                await keeper.finish(on_output, grace_s)  # noqa: ASYNC102 - shielded there
        except trio.Cancelled:
            if loss := keeper.loss():
                raise loss from None  # noqa: ASYNC104 - it says more than "cancelled"
            raise
        return keeper.command_end(timed_out=timed_out)


def command_spec(command: str, shell: str, cwd: str | None, env: Mapping[str, str]) -> bytes:
    """What the keeper is to run, in its own format; bytes, as the system will see them.

    Raises:
        CommandNotStarted: the system could not be given one of these; the text names it.
    """
    if command.startswith(("-", "+")):
        command = f" {command}"  # or the shell would take it for one of its options
    fields = [("cwd", cwd or ""), ("shell", shell), ("command", command)]
    for name, value in env.items():
        shown = shorten(repr(name), _SHOWN)
        if not name or "=" in name:
            message = f"env: {shown} cannot be the name of a variable"
            raise CommandNotStarted(message)
        fields.append((f"env {shown}", f"{name}={value}"))
    encoded: list[bytes] = []
    for field, text in fields:
        try:
            encoded.append(os.fsencode(text))
        except UnicodeEncodeError as error:
            message = f"{field}: cannot be encoded for this system: {error.reason}"
            raise CommandNotStarted(message) from error
        if b"\0" in encoded[-1]:
            message = f"{field}: must not contain NUL"
            raise CommandNotStarted(message)
    return b"\0".join(encoded)


async def _start_keeper(
    descriptors: contextlib.ExitStack, spec_size: int, grace_s: float, lock_fds: Sequence[int]
) -> _Keeper:
    """Start a keeper; our ends of its descriptors are closed by ``descriptors``.

    Python's descriptors are not inherited, and `subprocess` closes all but those named here, so
    the processes of concurrent commands do not hold one another's.
    """
    started = trio.current_time()
    selector = descriptors.enter_context(selectors.DefaultSelector())
    with contextlib.ExitStack() as its_ends:
        channel, its_channel = socket.socketpair()
        descriptors.callback(channel.close)
        its_ends.callback(its_channel.close)
        _channels.update((channel, its_channel))  # another thread may fork while it is opened
        output, its_output = os.pipe()
        descriptors.callback(os.close, output)
        its_ends.callback(os.close, its_output)
        process = await trio.lowlevel.open_process(
            [*_KEEPER, str(grace_s), str(spec_size), ",".join(map(str, lock_fds))],
            stdin=its_channel,
            stdout=its_output,
            stderr=subprocess.STDOUT,
            pass_fds=lock_fds,
            start_new_session=True,
        )
    return _Keeper(process, channel, output, selector, started)


@final
class _Keeper:
    """A keeper that was started, until it has gone.

    Two descriptors are waited for in one selector, which for Trio is a descriptor like any other:
    so this needs no nursery, and what ``on_output`` raises is raised as it is.
    """

    def __init__(
        self,
        process: trio.Process,
        channel: socket.socket,
        output: int,
        selector: selectors.DefaultSelector,
        started: float,
    ) -> None:
        self._started = started
        self._output_bytes = 0
        self._process = process
        self._channel = channel
        self._output = output
        self._selector = selector
        self._selector.register(channel, selectors.EVENT_READ)
        self._selector.register(output, selectors.EVENT_READ)
        self._ending = False
        self._gone = False  # or about to go
        self._unread = 0  # bytes in the output pipe when the keeper had gone
        self._lines = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._deaf = False

    async def send(self, spec: bytes) -> None:
        """Tell the keeper what to run."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._channel))
        with contextlib.suppress(trio.BrokenResourceError):  # it has gone: relay() will see it
            await stream.send_all(spec)

    async def relay(self, on_output: Callable[[str], Awaitable[None]]) -> None:
        """Pass the output on until the keeper has gone; goes on where a cancelled call ended."""
        while piece := await self._receive():
            self._output_bytes += len(piece)
            await self._pass_on(self._decoder.decode(piece), on_output)
        await self._pass_on(self._decoder.decode(b"", final=True), on_output)

    async def finish(self, on_output: Callable[[str], Awaitable[None]], grace_s: float) -> None:
        """Have the command ended if it still runs, and wait until the keeper has gone.

        ``on_output`` may hold the command up for the grace period; after that nothing may.
        """
        hurry = trio.current_time() + grace_s

        async def hurried(text: str) -> None:
            with trio.move_on_at(hurry):
                await on_output(text)

        self._order_end()
        interrupt: KeyboardInterrupt | None = None
        with trio.CancelScope(shield=True):
            try:
                while True:
                    try:
                        return await self._see_off(hurried)
                    except KeyboardInterrupt as error:  # a shield does not keep it out
                        interrupt = error
            finally:
                if interrupt is not None:
                    raise interrupt

    async def _see_off(self, on_output: Callable[[str], Awaitable[None]]) -> None:
        """Return when the keeper has gone; it bounds that: the grace period, and then by KILL."""
        try:
            await self.relay(on_output)
        finally:
            await self.relay(on_output)  # noqa: ASYNC102 - on_output failed: the rest is dropped
            await self._process.wait()  # noqa: ASYNC102
            await self._kill_what_a_killed_keeper_left()  # noqa: ASYNC102

    def has_gone(self) -> bool:
        """Whether nothing of the command is left; asks, if that is not known."""
        if not self._gone and self._channel in self._ready():
            self._listen()
        return self._gone

    def command_end(self, *, timed_out: bool) -> CommandEnd:
        """How the command ended; raises, as `run_command`, if it did not start or nobody knows."""
        report = self._report()
        if "error" in report:
            raise CommandNotStarted(report["error"])
        if loss := self.loss():
            raise loss
        if "status" in report:
            return self._end(int(report["status"]), timed_out=timed_out)
        if timed_out:  # before anything was run
            return self._end(None, timed_out=True)
        message = f"the keeper process ended before it (status {self._process.returncode})"
        raise CommandNotStarted(message)

    def loss(self) -> KeeperLost | None:
        """What to raise if the keeper was killed under its command."""
        report = self._report()
        if "pid" not in report or "error" in report or "done" in report:
            return None
        message = (
            "the command's keeper process was killed from outside "
            f"(status {self._process.returncode}): how the command ended is not known, and "
            "processes that had left its process group may still run"
        )
        return KeeperLost(message, self._end(None, timed_out=False))

    def _end(self, status: int | None, *, timed_out: bool) -> CommandEnd:
        return CommandEnd(
            exit_code=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            timed_out=timed_out,
            duration_s=trio.current_time() - self._started,
            output_bytes=self._output_bytes,
        )

    async def _receive(self) -> bytes:
        """The next piece of output; b"" once the keeper has gone and everything was read."""
        while not self._gone:
            if self._ending:  # a stopped keeper could not obey, and may be stopped again
                self._process.send_signal(signal.SIGCONT)
            with trio.move_on_after(_CONTINUE_S if self._ending else float("inf")):
                await trio.lowlevel.wait_readable(self._selector.fileno())
            ready = self._ready()
            if self._channel in ready:
                self._listen()
            elif self._output in ready:
                if piece := os.read(self._output, _PIECE_BYTES):
                    return piece
                self._selector.unregister(self._output)  # pragma: no cover - it dies in pieces
        # Whoever still holds the pipe now was not started by the command, and is not waited for.
        piece = os.read(self._output, min(self._unread, _PIECE_BYTES))
        self._unread -= len(piece)
        return piece

    def _ready(self) -> list[object]:
        return [key.fileobj for key, _ in self._selector.select(0)]

    def _listen(self) -> None:
        """Hear the keeper; its last word counts too, because a forked copy may hold its end."""
        try:
            received = self._channel.recv(4096)
        except ConnectionResetError:  # it was killed with the spec unread
            received = b""
        self._lines += received
        if not received or "done" in self._report():
            self._gone = True
            size = fcntl.ioctl(self._output, termios.FIONREAD, bytes(4))
            (self._unread,) = struct.unpack("i", size)

    async def _pass_on(self, text: str, on_output: Callable[[str], Awaitable[None]]) -> None:
        if not text or self._deaf:
            return
        try:
            await on_output(text.replace("\0", "\N{REPLACEMENT CHARACTER}"))
        except (trio.Cancelled, KeyboardInterrupt):  # the next text may be taken
            raise
        except BaseException:
            self._deaf = True
            raise

    def _order_end(self) -> None:
        """Shut our side of the channel; unlike closing, that holds for every copy of it."""
        if not self._gone:
            with contextlib.suppress(OSError):  # it goes at this moment
                self._channel.shutdown(socket.SHUT_WR)
            self._ending = True

    def _report(self) -> dict[str, str]:
        lines = self._lines.decode("utf-8", "replace").splitlines()
        return {word: rest for word, _, rest in (line.partition(" ") for line in lines)}

    async def _kill_what_a_killed_keeper_left(self) -> None:
        """Kill the leader's process group, which is as far as this process can see."""
        if self.loss() is None:
            return
        report = self._report()
        leader, is_taken = int(report["pid"]), "status" in report
        with contextlib.suppress(ProcessLookupError, PermissionError), trio.move_on_after(1):
            while True:
                try:
                    os.kill(leader, 0)
                except ProcessLookupError:
                    is_taken = True
                else:
                    if is_taken:  # a number is not given away while it is still that of a group,
                        return  # so this is somebody else
                os.killpg(leader, signal.SIGKILL)
                await trio.sleep(0.01)  # until init has taken them
