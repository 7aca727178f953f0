"""Day two of a deployment: `python manage.py --help`."""

import sys

try:
    import pyinfra_cli  # noqa: F401 (first, because it patches the process for gevent, as pyinfra's command line does)
except ModuleNotFoundError:
    sys.exit(
        "manage: pyinfra is not installed for this Python: first run `. .venv/bin/activate`, which `make setup` has made"
    )

from manage.commands import main

if __name__ == "__main__":
    main()
