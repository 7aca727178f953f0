"""The commands of manage.py, for everything after the first deploy.

`commands` is the command line, and each noun has a module: `accounts`, `tokens`, `mas`, `postgres`, `backup` (with `restore`),
`secrets`, `removal`, `status`, `outdated`, `sbom`. `machines` finds a machine by the inventory and runs commands on it, `web`
sends requests there, `deploying` runs a deploy, `output` prints and asks. `homeserver` is what the commands for accounts need of
one; `backends` has Synapse and MAS. `look` asks a machine for `status`, `outside` asks from here, and `judgement` says what is
wrong.
"""
