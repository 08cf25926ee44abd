"""Agent tools in the background, under Trio: never lost, doubled or leaked.

Data flows one way: a surface (a wrapped tool, the task tools, the prompt, the command) calls the
`BackgroundTaskManager`; the manager changes a task only through ``TaskStore.apply``; every store
asks the one pure function ``_lifecycle.apply`` whether that may happen.
"""
# ruff: noqa: I001 - grouped by subject

# Errors
from ._errors import CorruptRecord as CorruptRecord
from ._errors import ExecutorAlive as ExecutorAlive
from ._errors import ExecutorFenced as ExecutorFenced
from ._errors import IdempotencyKeyUsed as IdempotencyKeyUsed
from ._errors import InvalidAnswer as InvalidAnswer
from ._errors import InvalidValue as InvalidValue
from ._errors import ManagerClosed as ManagerClosed
from ._errors import ParentCancelled as ParentCancelled
from ._errors import QuestionClosed as QuestionClosed
from ._errors import QuestionDeclined as QuestionDeclined
from ._errors import Refused as Refused
from ._errors import SchemaTooNew as SchemaTooNew
from ._errors import StaleAttempt as StaleAttempt
from ._errors import StoreBusy as StoreBusy
from ._errors import StoreClosed as StoreClosed
from ._errors import TaskError as TaskError
from ._errors import TaskExists as TaskExists
from ._errors import TaskNotResumable as TaskNotResumable
from ._errors import TaskNotRunning as TaskNotRunning
from ._errors import TaskNotStopped as TaskNotStopped
from ._errors import TaskStoreError as TaskStoreError
from ._errors import UnknownTask as UnknownTask

# Background execution
from ._background import BackgroundCapable as BackgroundCapable
from ._executable import BackgroundExecutable as BackgroundExecutable
from ._executable import Rejected as Rejected
from ._execution import BackgroundExecution as BackgroundExecution
from ._execution import current_execution as current_execution
from ._function_tool import background_tool as background_tool

# Lifecycle: events, and the function that decides
from ._events import AttemptStarted as AttemptStarted
from ._events import CancelRequested as CancelRequested
from ._events import CheckpointSaved as CheckpointSaved
from ._events import Event as Event
from ._events import Facts as Facts
from ._events import Finished as Finished
from ._events import Orphaned as Orphaned
from ._events import OutputAppended as OutputAppended
from ._events import ProgressReported as ProgressReported
from ._events import QuestionAnswered as QuestionAnswered
from ._events import QuestionAsked as QuestionAsked
from ._events import QuestionsWithdrawn as QuestionsWithdrawn
from ._events import Registered as Registered
from ._lifecycle import apply as apply
from ._lifecycle import ends_attempt as ends_attempt
from ._lifecycle import journal_entry as journal_entry

# Runtime
from ._hints import Subscription as Subscription
from ._manager import BackgroundTaskManager as BackgroundTaskManager
from ._opening import open_task_manager as open_task_manager

# Records
from ._parameters import RUN_IN_BACKGROUND_PARAM as RUN_IN_BACKGROUND_PARAM
from ._records import Cancelled as Cancelled
from ._records import ExternalRef as ExternalRef
from ._records import Failed as Failed
from ._records import JournalEntry as JournalEntry
from ._records import Notice as Notice
from ._records import OutputPage as OutputPage
from ._records import Progress as Progress
from ._records import Question as Question
from ._records import Stopped as Stopped
from ._records import Success as Success
from ._records import TaskRecord as TaskRecord
from ._records import TaskResult as TaskResult
from ._records import TaskStatus as TaskStatus
from ._records import TaskSummary as TaskSummary
from ._records import ThreadMessageRef as ThreadMessageRef
from ._requests import CancelledTree as CancelledTree
from ._requests import ManagerConfig as ManagerConfig
from ._requests import ManagerStatistics as ManagerStatistics
from ._requests import StartRequest as StartRequest

# Contract with tools
from ._tool import Denied as Denied
from ._tool import ExecutionFailed as ExecutionFailed
from ._tool import InternalError as InternalError
from ._tool import InvalidArguments as InvalidArguments
from ._tool import NotFound as NotFound
from ._tool import Tool as Tool
from ._tool import ToolCallContext as ToolCallContext
from ._tool import ToolDescriptor as ToolDescriptor
from ._tool import ToolError as ToolError
from ._tool import ToolResult as ToolResult
from ._tool import ToolStatus as ToolStatus

# Prompt
from .prompt import TaskReminder as TaskReminder

# Stores
from .stores import LeaseTerms as LeaseTerms
from .stores import MemoryTaskStore as MemoryTaskStore
from .stores import SqliteTaskStore as SqliteTaskStore
from .stores import TaskStore as TaskStore

# Tools for the model
from .tools import task_tools as task_tools
