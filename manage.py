"""Day two of a deployment: `python manage.py --help`."""

import pyinfra_cli  # noqa: F401, isort: skip (first, because it patches the process for gevent, as pyinfra's command line does)

from manage.commands import main

if __name__ == "__main__":
    main()
