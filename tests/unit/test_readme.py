"""The README's tables agree with the records."""

from collections.abc import Iterator
from pathlib import Path

from roles import ROLES, Port, Role

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def domains() -> Iterator[str]:
    yield "| name | type | value | for |"
    yield "| --- | --- | --- | --- |"
    yield ("| `example.org` | A, AAAA | 198.51.100.7, 2001:db8::7 | finding the homeserver (`/.well-known/matrix`) |")
    for role in ROLES.values():
        if role.domain:
            yield f"| `{role.domain.prefix}.example.org` | A, AAAA | the same | {role.domain.purpose} |"


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


def test_components() -> None:
    assert "\n".join(components()) in README


def test_every_unit_is_in_the_command_that_shows_the_logs() -> None:
    [command] = [line for line in README.splitlines() if "journalctl -u matrix-synapse -u" in line]

    def shown(role: Role) -> bool:
        return all(f"-u {unit.name.removesuffix('.service')}" in command for unit in role.units)

    assert [role.name for role in ROLES.values() if role.name != "postgres" and not shown(role)] == []
