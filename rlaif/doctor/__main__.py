"""`python -m rlaif.doctor`."""

import sys

from rlaif.doctor import main

sys.exit(main(sys.argv[1:]))
