"""For `manage.py NAME mas migrate`: Caddy leads log-ins to MAS only when that has the accounts."""

from pyinfra import local

local.include("tasks/caddy.py")
