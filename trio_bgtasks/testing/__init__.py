"""Property tests for what runs on Trio: of this library, and of what is built on it.

Needs the extra ``trio_bgtasks[testing]``.
"""

from . import strategies as strategies
from ._corruptible import CorruptibleStore as CorruptibleStore
from ._faulty import Fault as Fault
from ._faulty import FaultyStore as FaultyStore
from ._faulty import StoreWrapper as StoreWrapper
from ._history import History as History
from ._history import Run as Run
from ._history import Save as Save
from ._history import TaskHistory as TaskHistory
from ._lifecycle_log import LifecycleStep as LifecycleStep
from ._lifecycle_machine import LifecycleMachine as LifecycleMachine
from ._promises import check_history as check_history
from ._questioning import Answer as Answer
from ._questioning import Asked as Asked
from ._questioning import AttemptQuestions as AttemptQuestions
from ._questioning import TaskQuestions as TaskQuestions
from ._recorded import RecordedManager as RecordedManager
from ._runtime_machine import RuntimeMachine as RuntimeMachine
from ._search import LifecycleSearch as LifecycleSearch
from ._search import search_lifecycle as search_lifecycle
from ._simulated import SimulatedExecutor as SimulatedExecutor
from ._simulated import SimulationStore as SimulationStore
from ._simulated import virtual_clock_ms as virtual_clock_ms
from ._store_machine import TaskStoreMachine as TaskStoreMachine
from ._tool_machine import BackgroundToolMachine as BackgroundToolMachine
from ._trio_machine import TrioStateMachine as TrioStateMachine
from ._trio_machine import in_trio as in_trio
from ._trio_run import Deadlock as Deadlock
from ._trio_run import Livelock as Livelock
from ._trio_run import TrioRun as TrioRun
