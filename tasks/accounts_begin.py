"""For `manage.py NAME mas migrate`: the machine is marked, before anything is changed."""

from operations import accounts

accounts.begun(name="Mark that accounts are moved")
