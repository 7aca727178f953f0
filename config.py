"""pyinfra reads this before anything else."""

from compat import install
from operations.lock import Locks
from operations.preflight import check_choices

install(check=check_choices, locks=Locks())
