"""Shrink planted bugs: see `shrinking`."""

import sys

from tests.property.planted.shrinking import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
