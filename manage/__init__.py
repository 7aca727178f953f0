"""The commands of manage.py, for everything after the first deploy.

`commands` is the command line; `machines` finds a machine by the inventory and runs commands on it; `web` sends requests there.
`accounts` and `tokens` have the commands for accounts and registration tokens, `homeserver` what they need of a homeserver, and
`synapse` and `mas` do it. `secrets` has the commands for the vault, `removal` the one that removes a role. `status` shows what
`look` has asked the machines, and what `judgement` says is wrong; `outdated` asks about newer releases and vulnerabilities.
"""
