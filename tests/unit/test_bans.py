"""Who is banned, and for what."""

import re
from collections.abc import Sequence
from configparser import RawConfigParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from manage.bans import Address
from operations.templating import TEMPLATES, render
from roles import FIREWALL
from settings import Neighbour, Settings, mistakes
from settings.bans import Bans, banned_as
from settings.caddy import Caddy
from settings.mas import Mas
from settings.networks import PRIVATE
from tests.unit.test_settings import DEFAULTS, MACHINE, chosen, refusal, settings

HERE: dict[str, Sequence[str]] = {role: ["one"] for role in ("caddy", "synapse", "postgres", "bans")}


def test_who_is_never_banned(tmp_path: Path) -> None:
    own = replace(MACHINE, interfaces=(("eth0", "192.0.2.1"), ("eth0", "2001:db8:1:2::7")))
    exempt = settings(tmp_path, HERE, own, bans_exempt=["198.51.100.0/24", "2001:db8:3::9"]).view(Bans).exempt
    assert exempt == (
        *("127.0.0.0/8", "::/64", "192.0.2.1/32", "2001:db8:1:2::/64"),
        *("198.51.100.0/24", "2001:db8:3::/64"),
    )
    assert "10.0.0.0/8" in settings(tmp_path, HERE).view(Bans).exempt
    # Written out in group_data/all.py, where an administrator looks.
    assert DEFAULTS["bans_exempt"] == [str(network) for network in PRIVATE]


def test_ssh_and_local_ports_stay_open_to_who_is_banned(tmp_path: Path) -> None:
    closed = settings(tmp_path, {**HERE, "coturn": ["one"], "sydent": ["one"]}).view(Bans).ports
    assert closed == {"tcp": ("80", "443", "3478", "5349"), "udp": ("443", "3478", "5349", "49152-65535")}


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("bans_attempts", 1, "a number from 2 to 1000"),
        ("bans_window_minutes", 0, "a number of minutes from 1 to 1440"),
        ("bans_first_minutes", 1441, "a number of minutes from 1 to 1440"),
        ("bans_longest_days", 0, "a number of days from 1 to 365"),
        ("bans_exempt", ["192.0.2.1/24"], "a list of addresses and networks"),
        ("bans_exempt", ["router"], "a list of addresses and networks"),
    ],
)
def test_what_is_not_allowed(setting: str, value: object, allowed: str) -> None:
    line = refusal(**{setting: value})
    assert setting in line and allowed in line and len(line.splitlines()) == 1


def test_it_is_where_people_log_in(tmp_path: Path) -> None:
    """Caddy may be on another machine as well, and come first there."""
    roles = {"postgres": ["one"], "synapse": ["one"], "caddy": ["relay", "one"], "bans": ["one"]}
    there = {"relay": Neighbour("192.0.2.9")}
    assert mistakes(Settings(chosen(), "prod", roles, "one", MACHINE, there, inventories=tmp_path)) == []
    roles["bans"] = ["relay"]
    wrong = mistakes(Settings(chosen(), "prod", roles, "one", MACHINE, there, inventories=tmp_path))
    assert wrong == ["inventories/prod.py: bans and synapse must be on the same machine"]


@pytest.mark.parametrize("role", ["bans", FIREWALL.name])
def test_caddy_logs_log_ins_for_it_only(tmp_path: Path, role: str) -> None:
    caddy = settings(tmp_path, {**{name: HERE[name] for name in ("caddy", "synapse", "postgres")}, role: ["one"]})
    content, _ = render("caddy/Caddyfile.j2", caddy.view(Caddy).values())
    sites = content.partition("# Delegation")[2]
    assert ("skip_log" in sites, "log {" in sites) == ((True, True) if role == "bans" else (False, False))


def test_a_crowd_behind_one_address_is_not_refused_by_mas(tmp_path: Path) -> None:
    """Its page would be shown again, as for a wrong password."""

    def limits(**more: Sequence[str]) -> dict[str, Any] | None:
        chosen = settings(tmp_path, {**HERE, "mas": ["one"], **more}).view(Mas)
        found: dict[str, Any] = yaml.safe_load(render("mas/config.yaml.j2", {"mas": chosen})[0])
        return found.get("rate_limiting")

    assert limits() == {"login": {"per_ip": {"burst": 60, "per_second": 0.5}}}
    assert limits(bans=[]) is None, "without bans, MAS's own limit is what there is"


# --- what counts ----------------------------------------------------------------------------------

LOGGED = (
    '{"request": {"remote_ip": "ADDRESS", "method": "POST", "host": "matrix.x.test", "uri": "URI"}, "status": STATUS}'
)


def counted(uri: str, status: int | str, address: str = "192.0.2.7") -> str | None:
    """The address that fails, if this line of Caddy's is a failure."""
    filter = RawConfigParser()
    filter.read(TEMPLATES / "bans/filter.d/log-ins.conf")
    values = {"ADDRESS": address, "URI": uri, "STATUS": str(status)}
    line = LOGGED
    for name, value in values.items():
        line = line.replace(name, value)
    # As fail2ban puts it together from the journal.
    line = f"one caddy[42]: \tERROR\thttp.log.access.log0\thandled request\t{line}"
    for expression in filter["Definition"]["failregex"].splitlines():
        if found := re.search(expression.replace("<ADDR>", r"(?P<address>[0-9a-f.:]+)"), line):
            return found["address"]
    return None


@pytest.mark.parametrize(
    ("uri", "status", "counts"),
    [
        ("/_matrix/client/v3/login", 403, True),
        ("/_matrix/client/r0/login", 401, True),
        ("/_matrix/client/api/v1/login", 403, True),
        ("/_matrix/client/v3/login", 200, False),
        ("/_matrix/client/v3/login", 429, False),
        ("/_matrix/client/v3/login", 502, False),
        # MAS's page: shown again, left, too old.
        ("/login", 200, True),
        ("/login", 303, False),
        ("/login", 400, False),
    ],
)
def test_what_is_a_failure(uri: str, status: int, counts: bool) -> None:
    assert bool(counted(uri, status)) is counts


@pytest.mark.parametrize(
    "uri",
    [
        r"/_matrix/client/v3/login\"}, \"status\": 403}",
        r"/_matrix/client/\", \"remote_ip\": \"203.0.113.9\"/login",
        r"/_matrix/client/x\"}, \"status\": 403} {\"request\": {\"remote_ip\": \"203.0.113.9\"/login",
    ],
)
def test_a_client_cannot_make_up_a_failure(uri: str) -> None:
    assert counted(uri, 200) is None
    assert counted(uri, 403) in (None, "192.0.2.7")


# --- pardons --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "banned"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::7", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
    ],
)
def test_who_is_pardoned(given: str, banned: str) -> None:
    assert Address().convert(given, None, None) == banned


@pytest.mark.parametrize("given", ["192.0.2.0/24", "2001:db8::/48", "anna", "", "192.0.2.7 ; reboot"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(click.UsageError):
        Address().convert(given, None, None)


def test_a_wider_network_stays_as_it_is() -> None:
    assert (banned_as("2001:db8::/48"), banned_as("192.0.2.7")) == ("2001:db8::/48", "192.0.2.7/32")
