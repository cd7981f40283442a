"""``python -m tlprune`` and ``accelerate launch -m tlprune``: the command line."""

import sys

from tlprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
