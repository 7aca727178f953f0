"""What every machine needs, whatever its roles."""

import json
import time

from testinfra.host import Host

from operations.machine import MARKER
from operations.preflight import LATER_DISK
from settings import Settings
from tests.host.machines import Machine
from tests.host.report import Note
from tests.host.services import ask


def test_no_unit_has_failed(host: Host) -> None:
    failed = [line.split()[0] for line in ask(host, "systemctl --failed --plain --no-legend").splitlines()]
    assert not failed, f"{', '.join(failed)} failed: see `systemctl status {failed[0]}` and `journalctl -u {failed[0]}`"


def test_it_belongs_to_this_deployment(host: Host, settings: Settings) -> None:
    found = host.run("cat %s", MARKER)
    assert found.rc == 0, f"nothing was deployed to this machine: pyinfra {settings.deployment} deploy.py"
    name = json.loads(found.stdout)["server_name"]
    assert name == settings.server_name, (
        f"this machine serves {name}, not {settings.server_name}: is it the right inventory?"
    )


def test_there_is_disk_space_for_the_next_deploy(machine: Machine, note: Note) -> None:
    free = machine.state.disk
    note("machine", f"Debian {machine.state.release}, {free / 1024:.1f} GiB free for programs and data")
    assert free >= LATER_DISK, f"only {free} MiB are free for /opt and /var: the next deploy needs {LATER_DISK} MiB"


def test_the_clock_is_right(host: Host) -> None:
    """Certificates, signatures of other homeservers and the credentials for calls have times of validity."""
    begin = time.time()
    wrong = float(ask(host, "date +%s.%N")) - (begin + time.time()) / 2
    assert abs(wrong) < 60, f"the clock is {wrong:+.0f} s off this computer's: see `timedatectl`"
