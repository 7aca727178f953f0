"""How a run says no."""

from pyinfra.api.exceptions import DeployError
from pyinfra_cli.exceptions import CliError


class Refused(DeployError, CliError):  # type: ignore[misc]
    """The run stops before anything is touched. The text is shown as it is, without a traceback; exit status 1."""
