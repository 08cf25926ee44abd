"""The lock of an executor: held exactly as long as something that does its work lives."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import descriptors
from trio_bgtasks.stores import _hostlock
from trio_bgtasks.stores._hostlock import (
    HostLock,
    boot_id,
    is_held,
    lock_files,
    make_private_folder,
    remove_if_free,
)

SLEEPER = [sys.executable, "-I", "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"]


@contextmanager
def sleeper(*, pass_fds: Sequence[int] = (), close_fds: bool = True) -> Generator[None, None, None]:
    """Within the block a process of another program is running."""
    with subprocess.Popen(
        SLEEPER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=pass_fds,
        close_fds=close_fds,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


def mode(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_lock_is_held_until_released_and_leaves_nothing(tmp_path: Path) -> None:
    """Folder and file are private; the release removes the file and may be repeated."""
    folder = tmp_path / "a" / "tasks.db.locks"
    lock = HostLock.acquire(folder)
    assert (mode(folder), mode(folder.parent), mode(lock.path)) == (0o700, 0o700, 0o600)
    assert is_held(lock.path)
    assert list(lock_files(folder)) == [(lock.executor_id, lock.path)]
    other = HostLock.acquire(folder)
    assert other.executor_id != lock.executor_id
    lock.release()
    assert not lock.path.exists()
    assert is_held(lock.path) is None
    lock.release()
    assert is_held(other.path)
    other.release()
    assert list(lock_files(folder)) == []


def test_the_lock_of_one_who_is_not_retired_stays_as_a_proof_of_death(tmp_path: Path) -> None:
    """Only a file that is there, and free, says that its executor is dead."""
    lock = HostLock.acquire(tmp_path)
    lock.release(is_retired=False)
    assert is_held(lock.path) is False
    remove_if_free(lock.path)
    assert is_held(lock.path) is None


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """Only what we make is made private."""
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path)
    assert mode(tmp_path) == 0o755


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """Dead at once, however it died; the file that it left is removed as stale."""
    code = (
        "import sys, time; from pathlib import Path; "
        "from trio_bgtasks.stores._hostlock import HostLock; "
        "print(HostLock.acquire(Path(sys.argv[1])).path, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            path = Path(process.stdout.readline().strip())
            assert is_held(path)
            remove_if_free(path)
            assert path.exists()
            process.send_signal(signal.SIGSTOP)
            assert is_held(path)
        finally:
            process.kill()
    assert not is_held(path)
    remove_if_free(path)
    assert not path.exists()


def test_a_program_does_not_inherit_the_lock(tmp_path: Path) -> None:
    """A subprocess that outlives us does not keep us alive."""
    lock = HostLock.acquire(tmp_path)
    with sleeper(close_fds=False):
        lock.release()
        assert not lock.path.exists()


def test_who_is_given_the_lock_keeps_it(tmp_path: Path) -> None:
    """A guard process that was passed the descriptor holds the lock after our release and death."""
    lock = HostLock.acquire(tmp_path)
    with sleeper(pass_fds=[lock.fd]):
        lock.release()
        assert is_held(lock.path)
        assert lock.path.exists()
    assert not is_held(lock.path)
    remove_if_free(lock.path)
    assert not lock.path.exists()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """It closes the descriptor, and its own clean-up leaves the parent's file alone."""
    lock = HostLock.acquire(tmp_path)
    told, tell = os.pipe()
    heard, say = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        fine = False
        try:
            fine = lock.fd == -1
            os.close(tell)
            lock.release()
            os.write(say, b".")
            os.read(told, 1)
        finally:
            os._exit(0 if fine and lock.path.exists() else 1)
    os.read(heard, 1)
    for fd in (told, heard, say):
        os.close(fd)
    assert is_held(lock.path)
    os.close(lock.fd)  # as our death would: the file stays, the child lives on
    _hostlock._held.discard(lock)  # pyright: ignore[reportPrivateUsage]
    assert not is_held(lock.path)
    os.close(tell)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("when", ["taken", "given up"])
def test_a_fork_in_the_middle_hands_no_lock_to_the_child(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork by another thread waits until a descriptor is in its place, or closed."""
    inside, forked, flock = threading.Event(), threading.Event(), fcntl.flock
    locks: list[HostLock] = []

    def linger() -> None:
        inside.set()
        forked.wait(0.3)  # it is held up by us, if all is well

    class Held(set[HostLock]):
        def discard(self, element: object) -> None:
            super().discard(element)
            linger()

    def slow(fd: int, operation: int) -> None:
        flock(fd, operation)
        if operation == fcntl.LOCK_EX:
            linger()

    def churn() -> None:
        locks.append(HostLock.acquire(tmp_path))
        if when == "taken":
            forked.wait()
        locks[0].release()

    if when == "taken":
        monkeypatch.setattr(fcntl, "flock", slow)
    else:
        monkeypatch.setattr(_hostlock, "_held", Held())
    thread = threading.Thread(target=churn)
    thread.start()
    inside.wait()
    heard, say = os.pipe()
    told, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(tell)
        os.write(say, b".")
        os.read(told, 1)
        os._exit(0)
    os.read(heard, 1)
    forked.set()
    thread.join()
    try:
        assert not is_held(locks[0].path)
    finally:
        for fd in (heard, say, told, tell):
            os.close(fd)
        os.waitpid(child, 0)


def test_two_probes_do_not_take_each_other_for_the_holder(tmp_path: Path) -> None:
    """A lock that is only being looked at is free."""
    path = tmp_path / "x.lock"
    path.touch()
    with path.open() as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        assert not is_held(path)


def test_in_doubt_a_lock_is_held(tmp_path: Path) -> None:
    """What cannot be opened is not called dead, nor removed."""
    loop = tmp_path / "loop.lock"
    loop.symlink_to(loop)
    assert is_held(loop)
    remove_if_free(loop)
    assert loop.is_symlink()


def test_a_file_that_cannot_be_removed_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale lock file does no harm: no error."""
    path = tmp_path / "x.lock"
    path.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    remove_if_free(path)


def test_a_sweep_between_open_and_lock_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh file that was taken for a stale one is given up for another, under a fresh id."""
    swept: list[Path] = []
    flock = fcntl.flock

    def swept_first(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not swept:
            (path,) = tmp_path.iterdir()
            monkeypatch.setattr(fcntl, "flock", flock)
            remove_if_free(path)
            swept.append(path)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    before = len(descriptors())
    lock = HostLock.acquire(tmp_path)
    assert swept
    assert lock.path != swept[0]
    assert is_held(lock.path)
    lock.release()
    assert len(descriptors()) == before


def test_a_file_system_without_locks_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised as it is, and no descriptor stays open."""

    def refuse(_fd: int, _operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(descriptors())
    with pytest.raises(OSError, match="No locks"):
        HostLock.acquire(tmp_path)
    assert len(descriptors()) == before


def test_lock_files_are_those_with_the_suffix(tmp_path: Path) -> None:
    """Foreign files in the folder are nobody's lock; no folder has none."""
    (tmp_path / "readme.txt").touch()
    (tmp_path / "ex_1.lock").touch()
    assert list(lock_files(tmp_path)) == [("ex_1", tmp_path / "ex_1.lock")]
    assert list(lock_files(tmp_path / "absent")) == []


def test_the_boot_id_is_the_kernels() -> None:
    """The same for every process until the host is started again."""
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
