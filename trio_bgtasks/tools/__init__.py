"""Tools for models: to look after tasks, and a real one to run in the background."""

from .guarded_shell import GuardedShell as GuardedShell
from .shell import ShellTool as ShellTool
from .task_tools import task_tools as task_tools
