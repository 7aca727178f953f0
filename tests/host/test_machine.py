"""What every machine needs, whatever its roles."""

import time

from testinfra.host import Host

from operations import ports
from operations.machine import MARKER
from operations.preflight import LATER_DISK
from operations.validity import is_for
from releases import Release
from settings import Settings
from tests.host.certificates import presented
from tests.host.machines import Machine
from tests.host.report import Note
from tests.host.services import DEPLOY, ask


def test_no_unit_has_failed(host: Host) -> None:
    failed = [line.split()[0] for line in ask(host, "systemctl --failed --plain --no-legend").splitlines()]
    assert not failed, f"{', '.join(failed)} failed: see `systemctl status {failed[0]}` and `journalctl -u {failed[0]}`"


def test_it_belongs_to_this_deployment(machine: Machine, settings: Settings) -> None:
    state = machine.state
    assert not state.marker_damaged, f"{MARKER} does not say which deployment the machine belongs to: {DEPLOY}"
    assert state.deployment, f"nothing was deployed to this machine: pyinfra {settings.deployment} deploy.py"
    name = state.deployment["server_name"]
    assert name == settings.server_name, (
        f"this machine serves {name}, not {settings.server_name}: is it the right inventory?"
    )


def test_its_services_reach_each_other_by_name(machine: Machine, host: Host, settings: Settings) -> None:
    """At the addresses that this machine has for the names, from /etc/hosts or DNS."""
    wrong = list(settings.unreachable)
    for name in dict.fromkeys(name for _, name in settings.reached):
        for address in machine.state.names.get(name, ()):
            found = presented(host, 443, name, address=address)
            # A machine without IPv6 uses the other addresses.
            if found.certificate is None and "unreachable" not in found.verdict:
                wrong.append(f"this machine gets no connection to {name} at {address}, port 443: {found.verdict}")
            elif found.certificate and not is_for(found.certificate, name):
                wrong.append(f"{name} is {address} on this machine, and another name is served there")
    advice = (
        "see `getent ahosts NAME` there: /etc/hosts, then DNS. Behind NAT without hairpinning, write the address of the "
        "machine with Caddy into /etc/hosts, and add it to private_networks"
    )
    assert not wrong, "\n".join([*wrong, advice])


def test_every_program_is_the_wanted_version(host: Host, settings: Settings) -> None:
    """What is installed below /opt; that it is also what runs, the tests of each role say."""
    wanted = {
        program.home: (title, f"{program.version}-" if isinstance(program, Release) else program.key)
        for title, program in settings.programs
    }
    if not wanted:
        return
    found = ask(host, "sh -c 'for home; do readlink $home/current || echo none; done' sh " + " ".join(wanted)).split()
    others = [
        f"{title} is {there}, not {version.removesuffix('-')}"
        for (title, version), there in zip(wanted.values(), found, strict=True)
        if not there.startswith(version)
    ]
    assert not others, f"{', '.join(others)}: {DEPLOY}"


def test_the_ports_of_its_services_are_reserved(host: Host, settings: Settings, note: Note) -> None:
    """Any local user could take one while its service restarts, which then would not start."""
    if not (settings.local_ports or settings.public_ports):
        return
    assert host.run(ports.WORKS).rc == 0, (
        f"the ports of services are not reserved for them, as {ports.PATH} says: {DEPLOY}, or `systemctl restart {ports.UNIT}`"
    )
    state = ask(host, "cat %s", ports.STATE)
    if state.startswith(ports.NOTHING):
        risk = "while a service restarts, a local user can take its port, and nobody hears that user"
        note("ports", f"{state.strip()}; {risk}; `systemctl restart {ports.UNIT}` tries it again")


def test_there_is_disk_space_for_the_next_deploy(machine: Machine, note: Note) -> None:
    free = machine.state.disk
    note("machine", f"Debian {machine.state.release}, {free / 1024:.1f} GiB free for programs and data")
    assert free >= LATER_DISK, f"only {free} MiB are free for /opt and /var: the next deploy needs {LATER_DISK} MiB"


def test_the_clock_is_right(host: Host) -> None:
    """Certificates, signatures of other homeservers and the credentials for calls have times of validity."""
    begin = time.time()
    wrong = float(ask(host, "date +%s.%N")) - (begin + time.time()) / 2
    assert abs(wrong) < 60, f"the clock is {wrong:+.0f} s off this computer's: see `timedatectl`"
