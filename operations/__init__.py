"""What pyinfra lacks, as operations and facts of our own.

files.present, for files.template, put and directory
    One command to look at many files instead of three for each. A file is replaced as a whole, and its secrets are at no time
    readable by others. Secrets are masked in --diff.
units.running, for systemd.service
    Whether to restart or reload is read from the machine, so that the next run makes up for an interrupted one. The unit must
    answer. A new configuration is checked before the old process is stopped.
packages.installed, for apt.packages and apt.update
    One transaction. Units stay masked until they are configured. It waits for every lock, and says which mirror does not answer.
    `not_started` keeps a unit off that is not needed, unless it was there before.
virtualenvs.build_started and in_use, for pip.venv and pip.packages
    Locked with hashes, extras included. Built in the background, and switched to once complete.
releases.installed, for files.download and files.unarchive
    Checked before it is installed. Unsafe archives are refused. The previous version is kept.
programs.Program
    What either is, and what runs it: with that, `units.running` puts back a version that does not come up. `schema` says whether
    Synapse's database allows that.
filters.Filter, for iptables
    A table of nftables with a unit that loads it. What a firewall takes away is loaded again.
ports.entries
    A unit that has the kernel refuse the ports of services to other users.
users.restored, for server.user
    Only for users that were removed: Debian's packages and sysusers.d make them. They get the IDs of their files again.
databases.cluster_exists and exist, for postgres.role and postgres.database
    PostgreSQL is sent a verifier of a password, and only when it differs. A database with other properties is refused, never
    changed.
certificates.*, deployment.*
    The certificates that servers present, and the trust store; the vault, saved before a machine gets a secret; the marker.
accounts.*, backups.*, removal.*
    Accounts that move to MAS, the target of the backup, a role that is taken away: pyinfra has nothing like it.

firewall.loaded, for files.put and server.shell
    New rules are taken back by the machine itself, unless a new connection shows that they let the administrator in.

`ssh` notices within a minute that a machine is gone; pyinfra waits without end.
`lock` lets one run at a time change a machine; `look` collects all questions to it into one command, and has `operation` and
`ask` for the others; `shell` runs every command in the same environment; `refusal`, `preflight` and `same_data` stop a run before
anything is touched; `templating` renders templates; `machine` describes a machine; `validity` says what is wrong with a
certificate.
"""
