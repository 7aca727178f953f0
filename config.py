"""pyinfra reads this first. Wrong choices are said before any machine is connected to."""

import sys

import pyinfra_cli.cli

from operations.preflight import choices_first

# pyinfra has no place of its own for this: its callbacks exist only after the inventory is loaded, from where on nothing
# but connecting happens.
if "deploy.py" in sys.argv:
    pyinfra_cli.cli.connect_all = choices_first(pyinfra_cli.cli.connect_all)
