"""Bans: fail2ban counts what Caddy logs, and the packet filter has whom it bans."""

import re

from testinfra.host import Host

from manage.look import AS_BANS, BANS_QUESTION, BanSeen
from roles import BANS_HOME, BANS_JAIL, BANS_TABLE
from tests.host.report import Note
from tests.host.services import DEPLOY, ServiceTests, ask


class TestService(ServiceTests):
    pass


def test_it_reads_what_caddy_logs(host: Host) -> None:
    shown = ask(host, f"{AS_BANS} fail2ban-client -c {BANS_HOME} status {BANS_JAIL}")
    assert "_SYSTEMD_UNIT=caddy.service" in shown, (
        f"no failures are counted: {DEPLOY}, or see journalctl -u matrix-bans"
    )


def test_who_is_banned_is_in_the_packet_filter(host: Host, note: Note) -> None:
    banned = BanSeen.of(ask(host, "sh -c %s", BANS_QUESTION).splitlines())
    dropped = set(
        re.findall(r"([0-9a-f.:]+)(?: timeout \S+)? expires", ask(host, "nft list table inet %s", BANS_TABLE))
    )
    missing = [ban.address for ban in banned if ban.address.removesuffix("/64") not in dropped]
    assert not missing, f"{', '.join(missing)}: banned, but not by the packet filter: systemctl restart matrix-bans"
    note("bans", f"{len(banned)} banned")
