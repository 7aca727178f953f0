"""A role that the inventory no longer gives to a machine is removed from it, for `manage.py NAME remove ROLE`.

What a role has is in its record, and settings/removal.py derives from that what goes. Each operation looks at what is left, so
a removal that was interrupted goes on where it stopped. What defines the units goes last: by these a later run sees that the
machine has had the role.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand

from operations.databases import COPIES, Existing, database_functions
from operations.look import ask, operation
from operations.packages import say_who_is_waited_for
from operations.shell import Fact, quoted, script, shell_file


@dataclass(frozen=True)
class Removal:
    """What a role may have on a machine where nothing else needs it.

    units: what runs; definitions: the files and directories that define it. paths: files, directories, and patterns of them.
    tools: programs that units of other roles may run as well. accounts: users and groups, by their names. packages: Debian's.
    maker: the package that makes the users; "" if a task does. tables: of nftables. state: directories of which a last copy is
    kept. authority: what its own authority is called in the trust store. package_users: what its packages leave.
    """

    role: str
    units: tuple[str, ...] = ()
    definitions: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    maker: str = ""
    tables: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    authority: str = ""
    package_users: tuple[str, ...] = ()

    @property
    def trusted(self) -> tuple[str, ...]:
        """The certificate of its authority, and the link to it."""
        if not self.authority:
            return ()
        return (f"/usr/local/share/ca-certificates/{self.authority}.crt", f"/etc/ssl/certs/{self.authority}.pem")


@dataclass(frozen=True)
class LastDatabase:
    """A database that nobody uses any more, in a cluster ("17/main"), and the PostgreSQL role that owns it."""

    role: str
    cluster: str
    name: str
    owner: str


# Kind ("unit", "definition", "path", "tool", "user", "group", "table") -> names.
Found = dict[str, list[str]]


def _shell() -> str:
    return shell_file("apt") + shell_file("removal")


class Left(Fact[Found]):
    """What there is of a removal, without the packages."""

    def question(self, removal: Removal) -> str:
        # Patterns are not quoted. No name has a space or anything that the shell expands but *.
        asked = {
            "unit": quoted(*removal.units),
            "definition": quoted(*removal.definitions),
            "path": " ".join((*removal.paths, *removal.trusted)),
            "user": quoted(*removal.accounts),
            "group": quoted(*removal.accounts),
            "table": quoted(*removal.tables),
        }
        tools = quoted(*removal.tools)
        orphans = [
            f"! is_orphan {quoted(each)} || {{ left user {each}; left group {each}; }}"
            for each in removal.package_users
        ]
        lines = [f"left {kind} {names}" for kind, names in asked.items() if names]
        if tools:
            lines.append(
                f"for tool in {tools}; do is_used $tool {quoted(*removal.definitions)} || left tool $tool; done"
            )
        return _shell() + "\n".join([*lines, *orphans, "true"])

    @staticmethod
    def default() -> Found:
        return {}

    def answer(self, lines: list[str]) -> Found:
        found: Found = {}
        for line in lines:
            kind, _, name = line.partition(" ")
            found.setdefault(kind, []).append(name)
        return found


class Unneeded(Fact[list[str]]):
    """Debian's packages that deploys have installed for the role, with what came with them, and that nothing else needs."""

    def question(self, removal: Removal) -> str:
        return f"{_shell()}unneeded {quoted(*removal.packages)}" if removal.packages else "true"

    @staticmethod
    def default() -> list[str]:
        return []

    def answer(self, lines: list[str]) -> list[str]:
        return lines


class Kept(Fact[list[str]]):
    """The last copies of a role's data."""

    def question(self, role: str) -> str:
        return f"ls -1 {COPIES}/{quoted(role)}-removed-* 2>/dev/null; true"

    @staticmethod
    def default() -> list[str]:
        return []

    def answer(self, lines: list[str]) -> list[str]:
        return lines


@operation()
def distrusted(removal: Removal) -> Generator[StringCommand, None, None]:
    """The machine's programs no longer trust the role's authority. Before they are started anew for another reason."""
    if removal.trusted and set(removal.trusted) & set(ask(Left, removal=removal).get("path", ())):
        certificate, link = removal.trusted
        yield script(
            f"rm -f {quoted(certificate)}",
            "update-ca-certificates >/dev/null 2>&1",
            # With --fresh it would do this itself, and leave the machine without any authority meanwhile.
            f"find /etc/ssl/certs -lname {quoted(link.rpartition('/')[2])} -delete",
            f"rm -f {quoted(link)}",
        )


@operation()
def stopped(removal: Removal) -> Generator[StringCommand, None, None]:
    """Its units do not run, are not started at boot, and its packet filters are gone."""
    found: Found = ask(Left, removal=removal)
    units, tables = found.get("unit", []), found.get("table", [])
    if units or tables:
        yield script(
            _shell(),
            f"stop {quoted(*units)}" if units else "",
            *(f"nft delete table inet {quoted(table)}" for table in tables),
        )


@operation()
def copied(removal: Removal) -> Generator[StringCommand, None, None]:
    """A last copy is kept of data that cannot be had again, readable by root only."""
    found: Found = ask(Left, removal=removal)
    if state := [path for path in removal.state if path in found.get("path", ())]:
        paths = quoted(*(path.lstrip("/") for path in state))
        yield script(f"copies={COPIES}\n{shell_file('copies')}", f"pack {_copy_name(removal.role, 'tar')} {paths}")


@operation()
def database_dropped(database: LastDatabase) -> Generator[StringCommand, None, None]:
    """The database is gone, and so is its owner. A last dump of it is kept, for pg_restore, readable by root only.

    A database of this name with another owner is not ours.
    """
    existing: dict[str, str] = ask(Existing, cluster=database.cluster)
    functions = database_functions(database.cluster)
    if existing.get(f"database {database.name}", "").split(" ")[0] == database.owner:
        yield script(functions, f"dump {quoted(database.name)} {_copy_name(database.role, 'dump')}")
        yield script(functions, f"as_superuser dropdb --force --if-exists {quoted(database.name)}")
    if f"role {database.owner}" in existing:
        yield script(functions, f"as_superuser dropuser --if-exists {quoted(database.owner)}")


@operation()
def database_roles_dropped(cluster: str, roles: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Roles of PostgreSQL's that own nothing are gone."""
    existing: dict[str, str] = ask(Existing, cluster=cluster)
    if left := [role for role in roles if f"role {role}" in existing]:
        yield script(
            database_functions(cluster), *(f"as_superuser dropuser --if-exists {quoted(role)}" for role in left)
        )


def _copy_name(role: str, suffix: str) -> str:
    """Of a last copy, in shell: with the time."""
    return f'{quoted(role)}-removed-"$(date +%Y-%m-%dT%H%M%SZ)".{suffix}'


@operation()
def files_removed(removal: Removal) -> Generator[StringCommand, None, None]:
    """Its files and directories are gone: settings, secrets, programs, data."""
    found: Found = ask(Left, removal=removal)
    if paths := [*found.get("path", ()), *found.get("tool", ())]:
        yield script(_shell(), f"remove {quoted(*paths)}")


@operation()
def packages_purged(removal: Removal) -> Generator[StringCommand, None, None]:
    """Debian's packages that only it needed are gone, with their settings. Those that the administrator installed stay."""
    if ask(Unneeded, removal=removal):
        say_who_is_waited_for()
        yield script(_shell(), f"purge {quoted(*removal.packages)}")


@operation()
def accounts_removed(removal: Removal) -> Generator[StringCommand, None, None]:
    """Its users and groups are gone, unless their Debian package stays, or files of the administrator's belong to them."""
    found: Found = ask(Left, removal=removal)
    if names := list(dict.fromkeys([*found.get("user", ()), *found.get("group", ())])):
        unless = f"! is_installed {quoted(removal.maker)} || exit 0" if removal.maker else ""
        yield script(_shell(), unless, f"forget {quoted(*names)}")


@operation()
def forgotten(removal: Removal) -> Generator[StringCommand, None, None]:
    """systemd does not know its units any more. The last step."""
    if definitions := ask(Left, removal=removal).get("definition"):
        yield script(_shell(), f"remove {quoted(*definitions)}", "systemctl daemon-reload")


def left_words(found: Found, packages: Sequence[str]) -> list[tuple[str, str]]:
    """What is left, for people: kind and name, in the order in which it goes."""
    kinds = {"unit": "unit", "table": "packet filter", "definition": "file", "path": "file", "tool": "file"}
    files = [(words, name) for kind, words in kinds.items() for name in found.get(kind, ())]
    accounts = [(kind, name) for kind in ("user", "group") for name in found.get(kind, ())]
    return [*files, *(("package", package) for package in packages), *accounts]
