"""``doctor``: the state of the database, of its executors and of its records. Changes nothing.

No manager is opened: its first sweep would end the orphans, which are to be shown.
"""

from __future__ import annotations

import attrs

from .._json import JsonObject
from ..stores.sqlite import StoreReport, inspect_file
from ._session import Exit, Session
from ._text import moment, one_line, size
from ._views import Grid, say, say_json, show

_SCHEMAS = {
    "current": "{}",
    "older": "{}, older than this version's: the next command that writes brings it up to date",
    "newer": "{}, newer than this version can read: use a newer one",
    "empty": "none yet",
    "foreign": "not ours: this is another application's database",
}


async def doctor(session: Session) -> int:
    """Print what there is to know; return 0 if the file can be used and every record be read."""
    session.check_database()
    report = await inspect_file(session.db)
    # An executor that has gone and left nothing running is of no interest.
    present = [e for e in report.executors if e.alive or e.running_tasks]
    report = attrs.evolve(report, executors=present)
    if session.json:
        say_json(_to_json(report))
    else:
        _print(report)
    unusable = report.schema in ("newer", "foreign")
    return Exit.OTHER if unusable or report.integrity or report.corrupt else Exit.COMPLETED


def _to_json(report: StoreReport) -> JsonObject:
    return {
        "path": str(report.path),
        "sqlite_version": report.sqlite_version,
        "journal_mode": report.journal_mode,
        "schema": report.schema,
        "schema_version": report.schema_version,
        "integrity": list(report.integrity),
        "executors": [
            {
                "executor_id": executor.executor_id,
                "pid": executor.pid,
                "alive": executor.alive,
                "registered_at_ms": executor.registered_at_ms,
                "running_tasks": executor.running_tasks,
            }
            for executor in report.executors
        ],
        "orphans": list(report.orphans),
        "corrupt": [{"task_id": error.task_id, "why": error.why} for error in report.corrupt],
        "file_bytes": report.file_bytes,
        "free_bytes": report.free_bytes,
    }


def _print(report: StoreReport) -> None:
    rows = [
        ("database", f"{report.path}"),
        ("size", f"{size(report.file_bytes)}, {size(report.free_bytes)} free on its disk"),
        ("SQLite", f"{report.sqlite_version}, journal {report.journal_mode}"),
        ("schema", _SCHEMAS[report.schema].format(report.schema_version)),
        ("integrity", "; ".join(report.integrity) or "ok"),
    ]
    if report.schema == "current":  # else nothing is known of these
        alive = sum(executor.alive for executor in report.executors)
        rows += [
            ("executors", f"{alive} alive, {len(report.executors) - alive} dead"),
            ("orphans", " ".join(report.orphans) or "none"),  # their ends were not saved
            ("corrupt records", "; ".join(map(str, report.corrupt)) or "none"),
        ]
    cells = [(name, one_line(text)) for name, text in rows]
    show(Grid(("field", "value"), cells, wrapped=("value",), header=False))
    if not report.executors:
        return
    say()
    executors = [
        (
            executor.executor_id,
            "alive" if executor.alive else "dead",
            str(executor.pid),
            moment(executor.registered_at_ms),
            str(executor.running_tasks),
        )
        for executor in report.executors
    ]
    show(Grid(("EXECUTOR", "STATE", "PID", "SINCE", "RUNNING TASKS"), executors))
