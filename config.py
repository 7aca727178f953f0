"""pyinfra reads this first. Wrong choices are said before any machine is connected to."""

import sys

import gevent
from pyinfra import state

from operations.preflight import ChoicesFirst
from operations.refusal import Refused

if "deploy.py" in sys.argv:
    state.add_callback_handler(ChoicesFirst)
    # Machines are connected to side by side; gevent would print a traceback for what is no error of the program.
    gevent.get_hub().NOT_ERROR += (Refused,)
