"""The backup on a machine: what its program has to know, and the repositories at the target."""

from collections.abc import Generator
from typing import Any

from pyinfra.api import StringCommand
from pyinfra.context import host

from operations.certificates import BUNDLE
from operations.files import Copy, Directory, Entry, Template, Text
from operations.look import ask, operation
from operations.machine import BACKUP_HOME, BACKUP_STATE
from operations.shell import YesOrNo, quoted, script
from roles import BACKUP_USER
from settings.backup import PROGRAM, PROGRAMS, Backup


def program_and_access(program: str, backup: Backup) -> list[Entry]:
    """A program, and all that it needs to reach a target, in the home of the access."""
    access, group = backup.access, "postgres" if backup.cluster else "root"
    values: dict[str, Any] = {
        "access": access,
        "keep_days": backup.keep_days,
        "cluster": backup.cluster,
        "port": backup.port,
        "state": BACKUP_STATE,
        "bundle": BUNDLE,
    }
    parts = ["files", *(["dumps"] if backup.cluster else [])]
    users = ["root", *(["postgres"] if backup.cluster else [])]
    key = access.ssh_key
    return [
        Directory(PROGRAMS, mode="755"),
        Copy(f"{PROGRAMS}/repositories.py", "backup/repositories.py", mode="644"),
        Copy(program, f"backup/{program.rpartition('/')[2]}", mode="755"),
        Directory(access.home, mode="750", group=group),
        Text(f"{access.home}/plan.json", backup.plan, mode="644"),
        *(
            Template(f"{access.home}/{part}.env", "backup/restic.env", mode="600", values={**values, "part": part})
            for part in parts
        ),
        *(
            [
                Template(
                    f"{access.home}/pgbackrest.conf", "backup/pgbackrest.conf", mode="640", group=group, values=values
                )
            ]
            if backup.cluster
            else []
        ),
        *(
            [
                Text(f"{access.home}/known_hosts", access.known_host, mode="644"),
                *(Text(f"{access.home}/ssh_key.{user}", key, mode="600", user=user, group=user) for user in users),
            ]
            if key
            else []
        ),
        Directory("/var/lib/matrix-metal", mode="755"),
        Directory(BACKUP_STATE, mode="755"),
        Directory(f"{BACKUP_STATE}/files", mode="755", user=BACKUP_USER, group=BACKUP_USER),
        *([Directory(f"{BACKUP_STATE}/database", mode="755", user="postgres", group=group)] if backup.cluster else []),
    ]


# Where the files' repository is, if that is a directory.
_REPOSITORY = f"""path=$(python3 -Ic '
import json
plan = json.load(open("{BACKUP_HOME}/plan.json"))
print(plan["paths"]["files"] if plan["target"] else "")
' 2>/dev/null || true)"""


class Owned(YesOrNo):
    """Whether the repository belongs to the user that backs up files."""

    def question(self) -> str:
        return f'{_REPOSITORY}; [ "$(stat -c %U "$path" 2>/dev/null)" != {BACKUP_USER} ] || echo yes'


@operation()
def given_back() -> Generator[StringCommand, None, None]:
    """The repository at the target belongs to root: the user goes, and the next new one could get its number."""
    if ask(Owned):
        yield script(f'{_REPOSITORY}; chown -R --no-dereference root:root "$path"')


class Prepared(YesOrNo):
    """Whether the repositories were made at this target."""

    def question(self, repository: str) -> str:
        return f'[ "$(cat {BACKUP_STATE}/prepared 2>/dev/null)" != {quoted(repository)} ] || echo yes'


@operation()
def prepared(repository: str, first: list[str]) -> Generator[StringCommand, None, None]:
    """The target has the repositories. Those that are there stay as they are; with another key, this fails.

    repository: where they are. first: units that make the first backup then, while the run goes on.
    """
    if ask(Prepared, repository=repository):
        host.noop("the repositories are there")
        return
    yield script(
        f"{PROGRAM} prepare",
        # What the jobs know is about another target.
        f"rm -f {BACKUP_STATE}/*/*.json {BACKUP_STATE}/files/stamp {BACKUP_STATE}/files/pruned",
        f"printf '%s\\n' {quoted(repository)} >{BACKUP_STATE}/prepared",
        # What they may reach depends on the target.
        "systemctl daemon-reload",
        f"systemctl start --no-block {quoted(*first)}",
    )
