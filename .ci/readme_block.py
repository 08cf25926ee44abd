"""Print a fenced block of the README: ``readme_block.py sh 2`` prints the second ``sh`` block.

Whoever follows the README and whoever checks a change so run the same text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


language, number = sys.argv[1], int(sys.argv[2])
fenced = rf"^```{re.escape(language)}\n(.*?)^```$"
blocks = re.findall(fenced, README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
if len(blocks) < number:
    sys.exit(f"README.md has {len(blocks)} `{language}` blocks; number {number} was asked for")
print(blocks[number - 1], end="")
