"""`python -m rlaif.doctor`."""

import sys

from rlaif.doctor import run_doctor

sys.exit(run_doctor(sys.argv[1:]))
