"""Tools for models: to look after tasks, and a real one to run in the background."""

from .shell import ShellTool as ShellTool
from .task_tools import task_tools as task_tools
