"""From the way a body ended to the outcome of its attempt. Pure; the table of design section 7."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import attrs
import trio

from ._json import NotJson, clean_text, copy_json, shorten
from ._records import (
    Cancelled,
    ExternalRef,
    Failed,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    ThreadMessageRef,
)

MAX_ERROR = 10_000
_MAX_LEAVES = 8

STOP_TEXT = {
    "owner_close": "The owner thread was closed",
    "shutdown": "The runtime was shut down",
    "caller": "The caller of the foreground run is gone",
}


LEASE_LOST = "The lease was lost; another executor owns the task"


@attrs.define
class BodyEnd:
    """How a body ended: it returned something, raised something, or was never run.

    Made for every attempt, and read once: what frozen costs would protect nobody (measured).
    """

    returned: Any = None
    raised: BaseException | None = None
    ran: bool = True

    def errors(self) -> list[BaseException]:
        """Return what it raised, one by one."""
        return [] if self.raised is None else leaves(self.raised)

    def has(self, kind: type[BaseException]) -> bool:
        """Did it raise one of this kind?"""
        return self.raised is not None and any(isinstance(e, kind) for e in self.errors())


def own_outcome(end: BodyEnd) -> TaskResult | None:
    """Return the outcome that the body itself means; None: it passed the cancellation on."""
    if end.raised is None:
        return _returned(end.returned) if end.ran else None
    errors = [leaf for leaf in end.errors() if not isinstance(leaf, trio.Cancelled)]
    if not errors:
        return None
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in errors):
        return Stopped("KeyboardInterrupt")
    return Failed(describe(errors))


def outcome_of(
    end: BodyEnd, reasons: AbstractSet[str], *, deadline_s: float | None = None
) -> TaskResult | None:
    """Return the outcome to record, or None to record nothing (the lease is lost).

    ``reasons`` is why the runtime cancelled the scope. Once it did, only `Success` still counts as
    itself; every other end takes the first of: lease lost, cancel, owner close, shutdown, caller
    gone, deadline; the body's own error stays in the text.
    """
    own = own_outcome(end)
    if isinstance(own, Success):
        return own
    if "fenced" in reasons:
        return None
    if "cancel" in reasons:
        return Cancelled() if own is None else own  # its error is kept; the mark makes it cancelled
    for reason, text in STOP_TEXT.items():
        if reason in reasons:
            return Stopped(_with_error(text, own))
    if "deadline" in reasons:
        text = f"The deadline of {deadline_s:g} s passed"
        return Failed(_with_error(text, own), own.value if isinstance(own, Failed) else None)
    return own if own is not None else Stopped(STOP_TEXT["shutdown"])


def counted(outcome: TaskResult, record: TaskRecord | None, attempt: int) -> TaskResult:
    """Return how ``attempt`` ended by its record; ``outcome`` is what it was to end as.

    ``record``: as the store has it afterwards; None: collected since.
    """
    if record is None:
        return outcome
    if record.attempt != attempt or record.status is TaskStatus.RUNNING:
        return Stopped(LEASE_LOST)
    if record.status is outcome.status:
        return outcome
    if record.status is TaskStatus.CANCELLED:
        return Cancelled()
    if record.status is TaskStatus.FAILED:
        return Failed(record.error or "", record.result)
    return Stopped(record.error)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions of a group, or the exception itself."""
    found: list[BaseException] = []
    ahead = [error]  # no recursion: groups may be nested deeper than the stack is
    while ahead:
        part = ahead.pop()
        if isinstance(part, BaseExceptionGroup):
            ahead += reversed(part.exceptions)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        else:
            found.append(part)
    return found


def describe(errors: list[BaseException]) -> str:
    """Return ``Type: message`` of each error; the number of those left out."""
    texts = [f"{type(error).__name__}: {_message(error)}" for error in errors]
    text = "; ".join(texts[:_MAX_LEAVES])
    if len(texts) > _MAX_LEAVES:
        text += f"; and {len(texts) - _MAX_LEAVES} more"
    return shorten(clean_text(text), MAX_ERROR)


def _message(error: object) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - somebody's __str__ must not cost us the end
        return f"<its __str__ raised {type(broken).__name__}>"


def _clean(text: object) -> str:
    return shorten(clean_text(_message(text)), MAX_ERROR)


def _with_error(text: str, own: TaskResult | None) -> str:
    error = own.error if isinstance(own, Failed) else getattr(own, "reason", None)
    return text if not error else shorten(f"{text}: {error}", MAX_ERROR)


def _returned(value: object) -> TaskResult:
    match value:
        case Success():
            return _checked_success(value)
        case Failed():
            problem, copied = _json_problem(value.value)
            error = _clean(value.error)
            return Failed(error, copied) if problem is None else Failed(f"{error} ({problem})")
        case Stopped():
            return value if value.reason is None else Stopped(_clean(value.reason))
        case Cancelled():
            return value
        case _:
            kind = type(value).__name__
            return Failed(f"TypeError: the tool returned {kind} instead of a TaskResult")


def _checked_success(value: Success) -> TaskResult:
    if type(value) is Success and value.value is None and value.ref is None:
        return value  # there is nothing in it to check, or to copy
    problem, copied = _json_problem(value.value)
    if problem is None and value.ref is not None:
        problem = _ref_problem(value.ref)
    return Success(copied, value.ref) if problem is None else Failed(problem)


def _json_problem(value: object) -> tuple[str | None, Any]:
    try:
        return None, copy_json(value)
    except NotJson as error:
        return f"result is not JSON: {error.path}: {error.kind}", None
    except Exception as broken:  # noqa: BLE001 - somebody's dict must not cost us the end
        return f"result is not JSON: reading it raised {type(broken).__name__}", None


def _ref_problem(ref: object) -> str | None:
    if not isinstance(ref, ThreadMessageRef | ExternalRef):
        return f"result_ref is not a reference: {type(ref).__name__}"
    for field, value in attrs.asdict(ref).items():
        if value is None and field == "message_id":
            continue
        if not isinstance(value, str):
            return f"result_ref.{field} is not a string: {type(value).__name__}"
        problem, _ = _json_problem(value)
        if problem is not None:
            return problem.replace("result is", f"result_ref.{field} is", 1)
    return None
