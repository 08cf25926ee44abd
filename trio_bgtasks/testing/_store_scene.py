"""Who a wish is made for: the client, its executor, and what the store holds at that moment."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

import attrs
import hypothesis.strategies as st

from trio_bgtasks import TaskRecord

from ._store_calls import Call
from ._store_model import StoreModel

# JSON that encodings like to change.
VALUES: tuple[dict[str, Any], ...] = (
    {},
    {"text": 'ünï "quoted" \\ 🎈 \n\t', "": [[], {}, [None, True, False]]},
    {"numbers": [0, -1, 2**63 - 1, -(2**63), 0.1, 1e300, -0.0, 5e-324, 1.0]},
)

Who: TypeAlias = Literal["its own", "mine", "a fenced one"]


@attrs.frozen
class Scene:
    """What a wish is made a call of: the model, the caller's own executor, and the time."""

    model: StoreModel
    me: str
    now_ms: int

    def task(self, number: int) -> tuple[str, TaskRecord | None]:
        """Return a task that is there, counted from the newest one, if there is any."""
        ids = list(self.model.records)
        task_id = ids[-1 - number % len(ids)] if ids else "t0"
        return task_id, self.model.records.get(task_id)

    def executor(self, record: TaskRecord | None, who: Who) -> str:
        """Return the executor that writes; one that may be found dead at any time does not."""
        lives = self.model.executors
        if who == "a fenced one":
            return next((n for n in reversed(lives) if lives[n] == "fenced"), "nobody")
        own = None if record is None else record.executor_id
        return own if who == "its own" and own is not None and lives[own] != "dead" else self.me


class Wish(Protocol):
    """What a client would like to do."""

    def call(self, scene: Scene, /) -> Call:
        """Make a call of it."""
        ...


def attempt_of(record: TaskRecord | None, late: int) -> int:
    """Return the number of its attempt, or of one so much before it."""
    return (1 if record is None else record.attempt) - late


def mostly(usual: Any, *others: Any, times: int = 4) -> st.SearchStrategy[Any]:
    """Draw ``usual`` ``times`` as often as the others together."""
    return st.sampled_from([usual] * times * len(others) + list(others))


tasks = st.integers(0, 5)
values = st.sampled_from(VALUES)
lates = mostly(0, 1, -1)
whose = mostly("its own", "mine", "a fenced one")
