"""``python -m trio_bgtasks.testing`` searches the lifecycle, and prints how much that was."""

import sys

from ._search import search_lifecycle

sys.stdout.write(f"{search_lifecycle()}\n")
