"""The firewall: its table is loaded as it was confirmed, now and at boot."""

from testinfra.host import Host

from operations.filters import FIREWALL
from operations.firewall import UNDO
from tests.host.services import DEPLOY, ask, table_of


def test_it_is_loaded_at_boot(host: Host) -> None:
    shown = ask(host, "systemctl show -p ActiveState -p UnitFileState %s", FIREWALL.unit)
    assert "ActiveState=active" in shown and "UnitFileState=enabled" in shown, (
        f"{FIREWALL.unit} is not active and enabled: {DEPLOY}"
    )


def test_it_drops_what_is_for_no_port_of_the_deployment(host: Host) -> None:
    assert "policy drop" in table_of(host, FIREWALL), f"the firewall lets everything in: {DEPLOY}"


def test_its_rules_were_confirmed(host: Host) -> None:
    assert host.run("systemctl is-active --quiet %s", f"{UNDO}.timer").rc != 0, (
        f"a deploy is trying new rules of the firewall, or was interrupted: they are taken back within a minute; {DEPLOY}"
    )
