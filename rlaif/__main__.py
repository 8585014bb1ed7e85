"""`python -m rlaif`."""

import sys

from rlaif.cli import main

if __name__ == "__main__":
    sys.exit(main())
