"""A file lock per executor: on one host, the exact and immediate proof that it is alive.

The kernel drops a ``flock`` when its last descriptor is closed, however the process ended, and
never before, however long the process was suspended. Whatever may outlive the process and still do
its work is given the descriptor (`HostLock.fd`), so that "dead" includes it.

A file that is missing proves nothing: somebody may have removed it under the one who holds it. So
the file stays until its executor has been retired, and where there is none another proof is needed.

Caveat: everybody must see the same lock folder, which lies beside the database.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .._json import new_id

_SUFFIX = ".lock"

_held: set[HostLock] = set()
_forking = threading.RLock()  # no fork between a descriptor and its place in `_held`


class HostLock:
    """An executor's own lock, held from `acquire` until `release`.

    The descriptor is not inherited by programs unless it is passed on by number, and is closed in a
    forked child, which would otherwise keep a dead executor alive.
    """

    def __init__(self, executor_id: str, path: Path, fd: int) -> None:
        self.executor_id = executor_id
        self.path = path
        self.fd = fd

    @classmethod
    def acquire(cls, folder: Path) -> HostLock:
        """Create and lock the file of a fresh executor id in ``folder``, which is made if missing.

        Raises:
            OSError: the folder or the file cannot be made.
        """
        make_private_folder(folder)
        while True:
            executor_id = new_id("ex_")
            path = lock_path(folder, executor_id)
            with _forking:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    removed = os.fstat(fd).st_nlink == 0
                except BaseException:
                    os.close(fd)
                    raise
                if not removed:
                    lock = cls(executor_id, path, fd)
                    _held.add(lock)
                    return lock
                # Somebody's sweep came between open and flock and took the file for a stale one.
                os.close(fd)

    def release(self, *, is_retired: bool = True) -> None:
        """Give up the lock; if its executor is retired, remove the file that nobody holds any more.

        Otherwise the free file stays, and tells everybody at once that this executor is dead.
        """
        if self.fd == -1:
            return
        with _forking:
            _held.discard(self)
            # Closed, not unlocked: LOCK_UN would also take it from those who were given it.
            os.close(self.fd)
            self.fd = -1
        if is_retired:
            remove_if_free(self.path)


def lock_path(folder: Path, executor_id: str) -> Path:
    """Return where the lock of ``executor_id`` is."""
    return folder / f"{executor_id}{_SUFFIX}"


def is_held(path: Path) -> bool | None:
    """Return whether somebody holds the lock, in doubt True; None when there is no such file.

    The probe is a shared lock: two probes at once do not take each other for the holder.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        return True
    try:
        return not _share(fd)
    finally:
        os.close(fd)


def remove_if_free(path: Path) -> None:
    """Remove a lock file that nobody holds; a held or missing one is left."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if _share(fd):
            path.unlink(missing_ok=True)
    except OSError:
        pass  # a stale file does no harm; the next sweep tries again
    finally:
        os.close(fd)


def _share(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lock_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (executor id, path) of every lock file in ``folder``; nothing if there is none."""
    for path in folder.glob(f"*{_SUFFIX}"):
        yield path.stem, path


def make_private_folder(folder: Path) -> None:
    """Make ``folder`` and what is missing above it, for this user only.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


@cache
def boot_id() -> str:
    """Return what is the same for all processes of this host until it is started again."""
    if sys.platform == "darwin":  # pragma: no cover
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _close_in_child() -> None:
    try:
        for lock in _held:
            os.close(lock.fd)
            lock.fd = -1
        _held.clear()
    finally:
        _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_in_child
)
