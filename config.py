"""pyinfra reads this before anything else."""

from compat import install
from operations.preflight import chosen

install(check=chosen)
