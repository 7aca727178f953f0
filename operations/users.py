"""The system users that services run as. They are made by Debian's packages, and by sysusers.d in the tasks of the roles.

Here they are restored, on a machine that had them: somebody removed one, or its files came from a machine with other IDs.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand

from operations.look import ask, operation
from operations.shell import Fact, quoted, script, shell_file


@dataclass(frozen=True)
class Account:
    """A user, and the group of the same name.

    title: what it is for. home: its home directory, which belongs to it, or "/". shell: its login shell. group: another group
    that it is in, or "". unit: what runs as the user. paths: more directories whose files may belong to its group.
    """

    name: str
    title: str
    home: str
    unit: str
    shell: str = "/usr/sbin/nologin"
    group: str = ""
    paths: tuple[str, ...] = ()


# Kind ("passwd", "group", "home" or "made") -> name or path -> the fields of its line.
Found = dict[str, dict[str, list[str]]]


class Accounts(Fact[Found]):
    """What the machine has of the accounts: users, groups, owners of home directories, and users in sysusers.d."""

    def question(self, accounts: Sequence[Account], others: Sequence[str] = ()) -> str:
        names = quoted(*(account.name for account in accounts))
        groups = quoted(*(account.group for account in accounts if account.group), *others)
        homes = quoted(*(account.home for account in accounts if account.home != "/"))
        return (
            f"getent passwd {names} | sed 's/^/passwd:/'; getent group {names} {groups} | sed 's/^/group:/'; "
            f"stat -L -c 'home:%n:%u:%g:%G' -- {homes} 2>/dev/null; "
            "cat /etc/sysusers.d/*.conf 2>/dev/null | sed -n 's/^u \\([^ ]*\\) .*/made:\\1/p'"
        )

    @staticmethod
    def default() -> Found:
        return {}

    def answer(self, lines: list[str]) -> Found:
        found: Found = {}
        for line in lines:
            kind, name, *rest = line.split(":")
            found.setdefault(kind, {})[name] = rest
        return found


def _is_wrong(account: Account, found: Found) -> bool:
    """Whether a service that the machine has cannot work with this user."""
    user, group = (found.get(kind, {}).get(account.name) for kind in ("passwd", "group"))
    home = found.get("home", {}).get(account.home)
    # A package of the administrator's may have made the user, in a group of another name.
    if not home and user is None and account.name not in found.get("made", {}):
        return False  # not made yet
    if user is None or group is None or user[2] != group[1]:
        return True
    also = found.get("group", {}).get(account.group)
    if also is not None and account.name not in also[-1].split(","):
        return True
    if home is None:
        return False
    owner, owner_group, group_name = home
    # A directory of root's is given its owner by the role's task.
    return owner not in ("0", user[1]) or (group_name == "UNKNOWN" and owner_group != group[1])


@operation()
def restored(accounts: Sequence[Account], groups: Mapping[str, Sequence[str]]) -> Generator[StringCommand, None, None]:
    """Each account that the machine had exists, and its files belong to it. Accounts that it never had are left alone.

    groups: others that the machine had -> the units that run with them.
    """
    if not accounts and not groups:
        return
    found = ask(Accounts, accounts=accounts, others=tuple(groups))
    # First, because a new group could be given the ID of one that is missing.
    for group, group_units in groups.items():
        if group not in found.get("group", {}):
            yield script(f"{shell_file('users')}restore_group {quoted(group, *group_units)}")
    for account in accounts:
        if _is_wrong(account, found):
            paths = [path for path in (account.home, *account.paths) if path != "/"]
            about = (account.name, account.title, account.home, account.shell, account.group, account.unit)
            yield script(f"{shell_file('users')}restore {quoted(*about, *paths)}")
