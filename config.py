"""pyinfra reads this before anything else."""

from compat import install
from operations.preflight import check_choices

install(check=check_choices)
