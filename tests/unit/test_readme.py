"""The README's tables agree with the records, the commands and the settings."""

import ast
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click

import operations
from manage.commands import cli
from roles import CADDY, COTURN, POSTGRES_PORT, ROLES, RTC, Port, Role

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def domains() -> Iterator[str]:
    yield "| name | type | value | for |"
    yield "| --- | --- | --- | --- |"
    yield ("| `example.org` | A, AAAA | 198.51.100.7, 2001:db8::7 | finding the homeserver (`/.well-known/matrix`) |")
    for role in ROLES.values():
        for domain in role.domains:
            yield f"| `{role.prefix_of(domain)}.example.org` | A, AAAA | the same | {domain.purpose} |"


def ports() -> Iterator[str]:
    yield "| role | ports | |"
    yield "| --- | --- | --- |"
    for role in ROLES.values():
        for when in dict.fromkeys(port.when for port in role.listens if port.reach == "everybody"):
            open_to_all = [port for port in role.listens if port.reach == "everybody" and port.when == when]
            yield f"| {role.name} | {', '.join(written(open_to_all))} | {f'with `{when} = True`' if when else ''} |"


def written(ports: list[Port]) -> Iterator[str]:
    """Such as 80/tcp, 443/tcp+udp."""
    for number, last in dict.fromkeys((port.number, port.last) for port in ports):
        protocols = "+".join(port.protocol for port in ports if port.number == number)
        yield f"{number}{f'-{last}' if last else ''}/{protocols}"


def components() -> Iterator[str]:
    yield "| | what it is for | leave it out if |"
    yield "| --- | --- | --- |"
    for role in ROLES.values():
        yield f"| {role.name} | {role.purpose} | {role.leave_out} |"


def test_domains() -> None:
    assert "\n".join(domains()) in README


def test_ports() -> None:
    assert "\n".join(ports()) in README


def test_ports_of_several_machines() -> None:
    for machine, roles in {"homeserver": [CADDY], "relay": [CADDY, COTURN], "with `rtc` also": [RTC]}.items():
        open_to_all = [
            port for role in roles for port in role.listens if port.reach == "everybody" and port.when is None
        ]
        assert f"\n| {machine} | {', '.join(written(open_to_all))} |" in README
    assert f"\n| database | | {POSTGRES_PORT}/tcp from the homeserver " in README


def test_components() -> None:
    assert "\n".join(components()) in README


def test_every_unit_is_in_the_command_that_shows_the_logs() -> None:
    [command] = [line for line in README.splitlines() if "journalctl -u matrix-synapse -u" in line]

    def shown(role: Role) -> bool:
        return all(f"-u {unit.name.removesuffix('.service')}" in command for unit in role.units)

    assert [role.name for role in ROLES.values() if role.name != "postgres" and not shown(role)] == []


def test_all_places_are_named() -> None:
    """Where data and settings are."""
    for role in ROLES.values():
        settings = [path for unit in role.units for path in (*unit.reads, *unit.rereads) if path.startswith("/etc/")]
        for path in (*role.state, *("/".join(path.split("/")[:3]) for path in settings)):
            assert path in README, path


def commands(group: click.Group, *above: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield " ".join((*above, name))


def test_every_command_is_in_the_table() -> None:
    table = README.partition("| `python manage.py prod ...` | |\n")[2].partition("\n\n")[0]
    assert [command for command in commands(cli) if not re.search(rf"`{command}[ `]", table)] == []


def test_defaults_of_settings() -> None:
    defaults = runpy.run_path(str(ROOT / "group_data" / "all.py"))
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", README.partition("\n## Settings\n")[2], re.MULTILINE)
    backup = (
        (ROOT / "docs" / "BACKUP.md").read_text().partition("Settings, with their defaults: ")[2].partition("\n")[0]
    )
    rows += re.findall(r"`(\w+) = ([^`]+)`", backup)
    assert len(rows) > 7
    for name, default in rows:
        assert ast.literal_eval(default) == defaults[name], name


def test_the_architecture_names_every_place() -> None:
    """Directories and modules at the top, and what is below manage/, tasks/ and settings/."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {file.partition("/")[0] for file in files if "/" in file or file.endswith(".py")}
    table = (
        (ROOT / "docs" / "ARCHITECTURE.md").read_text().partition("\n## Where things are\n")[2].partition("\n## ")[0]
    )
    assert [name for name in sorted(top) if not name.startswith(".") and f"`{name}" not in table] == []
    # `restore` is with `backup`, and the module of `remove` has a noun for its name.
    nouns = [*cli.commands, "removal", "commands", "__init__"]
    for folder, known in (("manage", nouns), ("tasks", ROLES), ("settings", [*ROLES, "__init__"])):
        modules = {path.stem for path in (ROOT / folder).glob("*.py")} - set(known)
        unnamed = [name for name in modules if f"`{name}" not in table and f"`{name.partition('_')[0]}_*" not in table]
        assert unnamed == [], folder
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"ARCHITECTURE.md"}
    assert [page for page in sorted(pages) if f"]({page})" not in table] == []


def test_the_operations_are_listed() -> None:
    about = operations.__doc__ or ""
    modules = {path.stem for path in (ROOT / "operations").glob("*.py")} - {"__init__"}
    assert [name for name in sorted(modules) if not re.search(rf"\b{name}\.|`{name}`", about)] == []
