"""`manage.py NAME status` on a complete deployment: all is well, many things are wrong, and a machine that is away."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from operations.lock import this_version
from roles import ALERTS_PORT
from settings.sliding_sync import VERSION
from tests.conftest import Deployed
from tests.deployment import Deployment
from tests.e2e.client import Account, Outside, expect_json
from tests.unit.test_status import certificate

STORE = "/var/lib/caddy/.local/share/caddy/certificates/local"
# What is broken, what repairs it, and how the reason begins.
FAULTS = [
    ("systemctl stop sydent", "systemctl start sydent", "sydent.service is inactive: `journalctl -u sydent.service`"),
    (
        "systemctl kill -s KILL lk-jwt && sleep 1 && systemctl is-active lk-jwt",
        "systemctl stop lk-jwt && systemctl reset-failed lk-jwt; systemctl start lk-jwt",
        "lk-jwt.service has crashed and was restarted once: ",
    ),
    (
        "systemd-run --quiet --unit=somebodys --property=Type=oneshot false || true",
        "systemctl reset-failed somebodys",
        "somebodys.service failed: `systemctl status somebodys.service` there says why",
    ),
    (
        "mount -t tmpfs -o size=16m tmpfs /var/log && fallocate -l 15M /var/log/filler",
        "umount /var/log",
        "only 1.0 MiB of 16.0 MiB are free on /var/log: ",
    ),
    (
        "cd /opt/sliding-sync && readlink current >/run/right && ln -sfn v0.99.18-0123456789ab current",
        "cd /opt/sliding-sync && ln -sfn $(cat /run/right) current",
        f"sliding-sync v0.99.18 is installed, and {VERSION} wanted: deploy again",
    ),
    (
        "cp -a {store}/{turn} /run/kept && cp /run/expired.pem {store}/{turn}/{turn}.crt && "
        "cp /run/expired.key {store}/{turn}/{turn}.key && systemctl restart coturn",
        "cp -a /run/kept/. {store}/{turn}/ && rm -r /run/kept && systemctl restart coturn",
        "{turn}, port 5349: its certificate expires on ",
    ),
]


def ask(deployment: Deployment) -> dict[str, Any]:
    done = deployment.manage("status", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["well"] else 1) and done.stderr == "", done.stderr
    return found


def texts(found: dict[str, Any]) -> list[str]:
    return [reason["text"] for reason in found["reasons"]]


def test_all_is_well(deployed: Deployed, alice: Account) -> None:
    deployed.deployment.run("-y")
    found = ask(deployed.deployment)
    assert found["well"], texts(found)
    [machine] = found["machines"]
    assert {unit["state"] for unit in machine["units"]} == {"active"} and all(
        unit["works"] for unit in machine["units"]
    )
    assert {program["name"] for program in machine["programs"]} == {
        *("matrix-synapse", "sydent", "sliding-sync", "livekit", "lk-jwt-service", "element-web", "cinny"),
        *("ketesa", "uplot"),
    }
    assert all(program["current"] for program in machine["programs"])
    domains = {each["name"] for each in machine["certificates"]}
    assert {deployed.server_name, f"turn.{deployed.server_name}", f"rtc.{deployed.server_name}"} <= domains
    assert all(each["ends"] and each["days"] is not None for each in machine["certificates"])
    databases = {each["name"]: each for each in machine["databases"]}
    assert databases["synapse"]["figures"]["accounts"] >= 1 and databases["synapse"]["size"] > 1 << 20
    assert None not in databases["synapse"]["figures"].values() and databases["syncv3"]["size"]
    assert machine["federation"] == {"works": True, "problem": ""} and machine["backup"] is None
    assert machine["last_deploy"]["version"] == this_version()["version"] and machine["last_deploy"]["by"]


@pytest.mark.once("debian13")
def test_it_is_one_page_for_people(deployed: Deployed) -> None:
    # An administrator does not want to see alerts that earlier tests have caused.
    amtool = f"amtool --alertmanager.url=http://127.0.0.1:{ALERTS_PORT} silence"
    silence = deployed.host.run(f"{amtool} add --author=x --comment=x --duration=5m alertname=~.+").stdout
    deployed.deployment.environment["COLUMNS"] = "80"
    done = deployed.deployment.manage("status")
    del deployed.deployment.environment["COLUMNS"]
    deployed.host.run(f"{amtool} expire {silence}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "All is well.", done.stdout
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    assert deployed.deployment.hosts[0].name in lines[0] and "no backup" in done.stdout


@pytest.fixture
def broken(deployed: Deployed) -> Iterator[list[str]]:
    """The machine with all faults; what the reasons begin with."""
    host, places = deployed.host, {"store": STORE, "turn": f"turn.{deployed.server_name}"}
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    old = certificate(places["turn"], now - timedelta(days=60), now + timedelta(days=5), key)
    host.run("cat >/run/expired.pem", stdin=old.public_bytes(pem).decode())
    host.run(
        "umask 077; cat >/run/expired.key",
        stdin=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none).decode(),
    )
    for fault, _, _ in FAULTS:
        host.run(fault.format(**places))
    yield [reason.format(**places) for _, _, reason in FAULTS]
    for _, repair, _ in reversed(FAULTS):
        host.run(repair.format(**places))
    deployed.deployment.run("-y")
    assert ask(deployed.deployment)["well"]


@pytest.mark.once("debian13")
def test_everything_that_is_wrong_is_named_with_what_to_do(deployed: Deployed, broken: list[str]) -> None:
    found = texts(ask(deployed.deployment))
    assert len(found) == len(broken), found
    for reason in broken:
        assert any(text.startswith(reason) for text in found), (reason, found)
    printed = deployed.deployment.manage("status")
    assert printed.returncode == 1
    _, _, last = printed.stdout.partition(f"{len(broken)} things are wrong:")
    assert len(last.strip().splitlines()) >= len(broken)
    # The verification judges the same.
    status, report = deployed.deployment.verify()
    plain = " ".join(report.split())
    assert status == 1
    for words in (
        "sydent.service is inactive",
        "lk-jwt.service has crashed and was restarted 1 times",
        "somebodys.service failed",
        "its certificate expires on",
    ):
        assert words in plain, (words, report)


@pytest.mark.once("debian13")
def test_a_deploy_that_did_not_end_is_reported(deployed: Deployed) -> None:
    # What a run leaves behind that failed, or was killed.
    deployed.host.run("sleep 1; touch /run/matrix-metal/run")
    [reason] = texts(ask(deployed.deployment))
    assert reason.startswith("the last deploy, by ") and reason.endswith("failed or was ended: deploy again")
    deployed.deployment.run("-y")
    assert ask(deployed.deployment)["well"]


@pytest.mark.once("debian13")
def test_a_machine_that_is_away_does_not_hide_the_others(deployed: Deployed, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, deployed.deployment.hosts, {}, roles={})
    group_data = deployed.deployment.directory / "group_data" / f"{deployed.deployment.name}.py"
    (tmp_path / "group_data" / f"{deployment.name}.py").write_text(group_data.read_text())
    (tmp_path / "known_hosts").touch()
    away = {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "ssh_known_hosts_file": str(tmp_path / "known_hosts")}
    lines = [
        deployed.deployment.inventory.read_text(),
        f"_away = ('relay.away.test', {away!r})",
        "caddy, coturn = [*caddy, _away], [_away]",
    ]
    deployment.inventory.write_text("\n".join(lines))
    found = ask(deployment)
    reasons = {reason["machine"]: reason["text"] for reason in found["reasons"]}
    assert reasons.pop("relay.away.test").startswith("cannot be reached: ")
    # It has the role that the other one has now.
    [left] = reasons.values()
    assert left.startswith("it still has coturn from an earlier run") and left.endswith(" remove coturn"), left
    one, other = found["machines"]
    assert one["reached"] and one["units"] and not other["reached"]


@pytest.mark.once("debian13")
def test_outdated_asks_the_machine_and_needs_no_other_source(deployed: Deployed) -> None:
    done = deployed.deployment.manage("outdated", "--json", "--pypi", "http://127.0.0.1:1/pypi")
    found = json.loads(done.stdout)
    name = deployed.deployment.hosts[0].name
    assert (done.returncode, found["complete"]) == (1, False), done.stderr
    assert not [line for line in found["unreachable"] if line.startswith(name)], found
    assert len([line for line in found["unreachable"] if line.startswith("PyPI was not asked about ")]) == 1
    # What there is depends on the day.
    assert {item["where"] for item in found["items"] if item["kind"] == "debian"} <= {name}
    upgrades = deployed.host.run("apt-get -s -q dist-upgrade | grep '^Inst .*-[Ss]ecurity' || true").stdout
    assert {item["name"] for item in found["items"] if item["vulnerabilities"]} == {
        line.split()[1] for line in upgrades.splitlines()
    }


@pytest.mark.once("debian13")
def test_the_bill_of_materials_is_what_runs(deployed: Deployed, outside: Outside, tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    done = deployed.deployment.manage("sbom", "--output", str(file), "--licences")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    document = json.loads(file.read_text())
    [machine, *_] = deployed.deployment.hosts
    found = {each["name"]: each for each in document["components"]}
    depends = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert depends[f"deployment/{deployed.deployment.name}"] == [f"machine/{machine.name}"]
    with outside.http() as http:
        server = expect_json(http.get(outside.url("matrix", "/_matrix/federation/v1/version")))["server"]
    synapse = found["matrix-synapse"]
    assert synapse["purl"] == f"pkg:pypi/matrix-synapse@{server['version']}" and synapse["licenses"]
    for name in ("matrix-synapse", "caddy", "coturn", "livekit"):
        assert found[name]["bom-ref"] in depends[f"machine/{machine.name}"] and found[name]["licenses"], name
    assert found["twisted"]["bom-ref"] in depends[synapse["bom-ref"]]
    # Both are from Debian, as many as dpkg has.
    version = found[f"postgresql-{17 if machine.release == 'trixie' else 15}"]
    assert version["licenses"] and {"name": "matrix-metal:role", "value": "postgres"} in version["properties"]
    packages = [each for each in document["components"] if each.get("purl", "").startswith("pkg:deb/debian/")]
    assert len(packages) == int(
        machine.run("dpkg-query --show --showformat '${db:Status-Status}\\n' | grep -cx installed").stdout
    )
    recorded = deployed.deployment.vault.with_suffix(".lock").read_text()
    for name in ("livekit", "lk-jwt-service", "sliding-sync"):
        [sha256] = found[name]["hashes"]
        assert f'["{name}"."{found[name]["version"]}"]' in recorded and sha256["content"] in recorded
    assert not [
        name for name, each in found.items() if "pkg:pypi/" in each["bom-ref"] and "externalReferences" not in each
    ]
    assert found["matrix-metal"]["version"] == this_version()["version"]
    assert "AGPL-3.0-or-later" in done.stdout and "whose licence no program can read" in done.stdout
