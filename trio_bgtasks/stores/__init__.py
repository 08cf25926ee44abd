"""Task stores: `MemoryTaskStore`, `SqliteTaskStore` and the `TaskStore` protocol."""

from ._protocol import ExecutorHandle as ExecutorHandle
from ._protocol import LeaseTerms as LeaseTerms
from ._protocol import RecordPage as RecordPage
from ._protocol import SweepReport as SweepReport
from ._protocol import TaskStore as TaskStore
from ._protocol import wall_clock_ms as wall_clock_ms
from .memory import MemoryTaskStore as MemoryTaskStore
from .sqlite import SqliteTaskStore as SqliteTaskStore
