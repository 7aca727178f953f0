"""Day two of a deployment: `python manage.py --help`."""

import gc
import sys

# As in config.py: most of the time of a command is that of imports.
gc.set_threshold(100_000)

try:
    import pyinfra_cli  # noqa: F401 (first, because it patches the process for gevent, as pyinfra's command line does)
except ModuleNotFoundError:
    sys.exit(
        "manage: pyinfra is not installed for this Python: first run `. .venv/bin/activate`, which `make setup` has made"
    )

from manage.commands import main  # noqa: E402

# Nor is what was imported looked through again when the command ends.
gc.freeze()

if __name__ == "__main__":
    main()
