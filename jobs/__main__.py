"""`python -m jobs` is `epwatch`, for a checkout that is not installed."""

import sys

from jobs.cli import main

sys.exit(main())
