"""``python -m trio_bgtasks.cli``: the command, also where its script is not installed."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
