"""What pyinfra lacks, as operations and facts of our own.

| ours | pyinfra's | why ours |
| --- | --- | --- |
| files.present | files.template, put, directory | one question for many files instead of three for each; a file is written whole or not at all and never readable for a moment; secrets are masked in --diff |
| units.running | systemd.service | restart and reload are derived from the machine, so that an interrupted run is healed; the unit must answer; a new configuration is checked before the old process ends |
| packages.installed | apt.packages, apt.update | one transaction; units are held until they are configured; waits for every lock, and says which mirror does not answer |
| virtualenvs.begun, in_use | pip.venv, pip.packages | locked with hashes, extras included; built beside the rest of the run; switched to once it is complete |
| releases.installed | files.download, files.unarchive | checked before it is in place; archives that could do harm are refused; the version before is kept |
| databases.exist | postgres.role, postgres.database | a password is told as a verifier and only when it differs; what exists with other properties is refused, never changed |
| certificates.* | none | what servers present, whom a machine trusts |
| deployment.* | none | the vault is saved before any machine knows a secret; the marker |

`look` asks a machine everything at once and gives `operation` and `ask` to the others; `shell` runs every command alike;
`refusal` and `preflight` stop a run before anything is touched; `templating` fills templates; `machine` is what a machine is.
"""
