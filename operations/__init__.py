"""What pyinfra lacks, as operations and facts of our own.

files.present, for files.template, put and directory
    One question for many files instead of three for each. A file is written whole or not at all, and never readable for a
    moment. Secrets are masked in --diff.
units.running, for systemd.service
    Restart and reload are derived from the machine, so that an interrupted run is healed. The unit must answer. A new
    configuration is checked before the old process ends.
packages.installed, for apt.packages and apt.update
    One transaction. Units stay masked until they are configured. It waits for every lock, and says which mirror does not answer.
virtualenvs.begun and in_use, for pip.venv and pip.packages
    Locked with hashes, extras included. Built beside the rest of the run, and switched to once complete.
releases.installed, for files.download and files.unarchive
    Checked before it is in place. Archives that could do harm are refused. The version before is kept.
databases.exist, for postgres.role and postgres.database
    A password is told as a verifier, and only when it differs. What exists with other properties is refused, never changed.
certificates.*, deployment.*
    What servers present and whom a machine trusts; the vault is saved before any machine knows a secret; the marker.

`look` asks a machine everything at once and gives `operation` and `ask` to the others; `shell` runs every command alike;
`refusal` and `preflight` stop a run before anything is touched; `templating` fills templates; `machine` is what a machine is.
"""
