"""pyinfra reads this before anything else."""

import gc

# Python would look for garbage many times while it imports the rest, and a run makes little.
gc.set_threshold(100_000)

from compat import install  # noqa: E402
from operations.lock import Locks  # noqa: E402
from operations.preflight import check_choices  # noqa: E402

# Nor is what was imported looked through again when the run ends.
gc.freeze()

install(check=check_choices, locks=Locks())
