"""Make the database file of the current schema version that the tests keep.

Run once for each new version, and never again: ``python -m tests.stores.make_schema_db``. What is
in it, `CONTENT` says; later versions of the library must read the same from it.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from trio_bgtasks._events import (
    AttemptStarted,
    CancelRequested,
    CheckpointSaved,
    Finished,
    OutputAppended,
    ProgressReported,
    QuestionAnswered,
    QuestionAsked,
    Registered,
)
from trio_bgtasks._records import (
    Cancelled,
    ExternalRef,
    Failed,
    Progress,
    Question,
    Stopped,
    Success,
    ThreadMessageRef,
)
from trio_bgtasks.stores import LeaseTerms, SqliteTaskStore
from trio_bgtasks.stores.sqlite._schema import SCHEMA_VERSION

DATA: Final = Path(__file__).parent / "data"

CONTENT: Final[dict[str, dict[str, Any]]] = {
    "completed": {"status": "completed", "result": {"é": [1, 2.5, None]}, "output_bytes": 13},
    "failed": {"status": "failed", "error": "it broke", "result_ref": None},
    "stopped": {"status": "stopped", "checkpoint": {"at": 3}, "attempt": 2, "error": "pause"},
    "running": {"status": "running", "cancel_requested_at_ms": 3000, "parent_task_id": "stopped"},
    "message": {"status": "completed", "result_ref": ThreadMessageRef("th", "m")},
    "uri": {"status": "completed", "result_ref": ExternalRef("file:///x"), "background": False},
}
"""Fields of the tasks of owner "ann"; "collected" was one more, with the key "old key"."""

SINCE_V2: Final[dict[str, dict[str, Any]]] = {
    "asked": {
        "status": "stopped",
        "questions": (Question("q1", "Sure?", {"type": "boolean"}, 1500, "answered", answer=True),),
        "questions_asked": 2,
    },
}
"""More of them, in the files of version 2 and later."""


async def fill(store: SqliteTaskStore, executor_id: str) -> None:
    """Make every kind of row."""

    def registered(task_type: str = "shell", **fields: Any) -> Registered:
        return Registered(1000, executor_id, "ann", task_type, "a task", **fields)

    ended = partial(Finished, 2000, executor_id)
    apply = store.apply
    await apply("collected", registered(idempotency_key="old key"))
    await apply("collected", ended(1, Cancelled()))
    await store.collect("ann", ended_before_ms=2000)
    await store.acknowledge("ann", [notice.notice_id for notice in await store.notices("ann")])

    await apply("completed", registered(args={"a": 1}, metadata={"m": 2}, idempotency_key="key"))
    await apply("completed", OutputAppended(1500, executor_id, 1, 0, "héllo "))
    result = {"é": [1, 2.5, None]}
    await apply("completed", ended(1, Success(result), output_offset=7, output="wörld"))
    await apply("failed", registered())
    await apply("failed", ended(1, Failed("it broke"), announce=False))
    await apply("stopped", registered(supports_resume=True))
    await apply("stopped", CheckpointSaved(1500, executor_id, 1, {"at": 3}))
    await apply("stopped", ended(1, Stopped("first")))
    again = AttemptStarted(2500, executor_id, "ann", "shell", 1, {"merged": True})
    await apply("stopped", again)
    await apply("stopped", ended(2, Stopped("pause")))
    await apply("running", registered(parent_task_id="stopped"))
    await apply("running", ProgressReported(2500, executor_id, 1, Progress(1, 2, "half")))
    await apply("running", CancelRequested(3000))
    await apply("message", registered())
    await apply("message", ended(1, Success(ref=ThreadMessageRef("th", "m"))))
    await apply("uri", registered(background=False))
    await apply("uri", ended(1, Success(ref=ExternalRef("file:///x"))))
    await apply("asked", registered(supports_resume=True))
    await apply("asked", QuestionAsked(1500, executor_id, 1, "Sure?", {"type": "boolean"}))
    await apply("asked", QuestionAnswered(1600, "q1", answer=True))
    await apply("asked", QuestionAsked(1700, executor_id, 1, "Why?", {"type": "string"}))
    await apply("asked", ended(1, Stopped("pause")))


async def make(target: Path) -> None:
    """Write the file as a process leaves it that was killed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.db"
        async with (
            SqliteTaskStore.open(path) as store,
            store.executor(LeaseTerms(), lambda: 1000) as executor,
        ):
            await fill(store, executor.executor_id)
            # On a host that nobody knows: only its lease tells that it is dead.
            sql = "UPDATE executors SET boot_id = 'the boot of the day', pid = 1"
            await store._engine.write(lambda connection: connection.execute(sql))  # pyright: ignore[reportPrivateUsage]
            shutil.copyfile(path, target)


if __name__ == "__main__":
    file = DATA / f"schema_v{SCHEMA_VERSION}.db"
    if file.exists():
        raise SystemExit(f"{file} exists: what was once a version stays as it was")
    trio.run(make, file)
