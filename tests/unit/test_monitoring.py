"""The monitoring: where it may be, what it says of the backup, the services and damage, and how it mails."""

import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from manage.sbom import release_files
from operations.templating import TEMPLATES, render
from roles import PROMETHEUS_PORT
from settings import SettingError, mistakes
from settings.admin import PASSWORD
from settings.caddy import Caddy
from settings.monitoring import ALERT_SUBJECT, ALERT_TEXT, Monitoring, presented
from tests.conftest import ADMIN_PASSWORD_HASH
from tests.host.test_monitoring import told
from tests.unit.test_settings import MACHINE, settings

HERE: dict[str, Sequence[str]] = {role: ["one"] for role in ("caddy", "synapse", "postgres", "coturn", "monitoring")}
FIGURES: dict[str, Any] = runpy.run_path(str(TEMPLATES / "monitoring/matrix-metal-figures"))


def view(tmp_path: Path, **choices: object) -> Monitoring:
    return settings(tmp_path, HERE, MACHINE, admin_email="admin@x.test", **choices).view(Monitoring)


def test_it_watches_the_machine_of_homeserver_and_database(tmp_path: Path) -> None:
    apart = {**HERE, "postgres": ["other"]}
    wrong = mistakes(settings(tmp_path, apart, MACHINE))
    assert "inventories/prod.py: monitoring and postgres must be on the same machine" in wrong
    assert mistakes(settings(tmp_path, HERE, MACHINE, admin_email="admin@x.test")) == []


def test_each_certificate_is_looked_at_also_that_of_the_relay(tmp_path: Path) -> None:
    found = presented(settings(tmp_path, HERE, MACHINE, admin_email="admin@x.test"))
    assert {(each.name.partition(".")[0], each.port) for each in found} >= {("matrix", 443), ("turn", 5349)}
    assert len(found) == len(set(found))


@pytest.mark.parametrize(("port", "tls"), [(587, "tls"), (465, "starttls"), (465, "none")])
def test_mail_that_alertmanager_cannot_send_is_refused(tmp_path: Path, port: int, tls: str) -> None:
    with pytest.raises(SettingError, match="on port 465, and only there"):
        view(tmp_path, smtp_host="mail.x.test", smtp_port=port, smtp_tls=tls)


@pytest.mark.parametrize(
    ("port", "tls", "required"), [(587, "starttls", True), (465, "tls", False), (25, "none", False)]
)
def test_alerts_are_mailed_as_other_mails_are(tmp_path: Path, port: int, tls: str, required: bool) -> None:
    monitoring = view(tmp_path, smtp_host="mail.x.test", smtp_port=port, smtp_tls=tls)
    values = {"monitoring": monitoring, "subject": ALERT_SUBJECT, "text": ALERT_TEXT}
    written = yaml.safe_load(render("monitoring/alertmanager.yaml.j2", values)[0])
    assert written["global"]["smtp_smarthost"] == f"mail.x.test:{port}"
    assert written["global"]["smtp_require_tls"] is required and "smtp_auth_username" not in written["global"]
    [receiver] = written["receivers"]
    assert receiver["email_configs"][0]["to"] == "admin@x.test"


def test_without_a_mail_server_nobody_is_written_to(tmp_path: Path) -> None:
    values = {"monitoring": view(tmp_path), "subject": ALERT_SUBJECT, "text": ALERT_TEXT}
    written = yaml.safe_load(render("monitoring/alertmanager.yaml.j2", values)[0])
    assert "global" not in written and written["receivers"] == [{"name": "administrator"}]


def test_the_verification_says_who_is_told_of_alerts(tmp_path: Path) -> None:
    mailed, room = view(tmp_path, smtp_host="mail.x.test"), ["@anna:x.test"]
    assert told(view(tmp_path), []) == "nobody is told: set smtp_host, or alerts_to"
    assert told(view(tmp_path), room) == "in a room: @anna:x.test"
    assert told(mailed, room) == "by mail to admin@x.test; in a room: @anna:x.test"


def test_each_rule_says_what_is_wrong_and_in_one_sentence_what_to_do(tmp_path: Path) -> None:
    monitoring = settings(
        tmp_path, {**HERE, "backup": ["one"]}, MACHINE, admin_email="a@x.test", backup_target="/mnt/b"
    )
    values = {"monitoring": monitoring.view(Monitoring), "presented": presented(monitoring)}
    [group] = yaml.safe_load(render("monitoring/rules.yaml.j2", values)[0])["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) > 25
    for rule in group["rules"]:
        said = rule["annotations"]
        assert not said["summary"].endswith(".") and said["todo"].endswith("."), rule["alert"]
        assert ". " not in said["todo"], rule["alert"]


def test_the_overview_is_where_the_administrators_pages_are(tmp_path: Path) -> None:
    def served(roles: dict[str, Sequence[str]], **choices: object) -> tuple[str, Sequence[str], tuple[str, ...] | None]:
        chosen = settings(tmp_path, roles, MACHINE, admin_email="admin@x.test", **choices)
        chosen.vault.set(PASSWORD, ADMIN_PASSWORD_HASH)
        [port] = [port for port in chosen.local_ports if port.number == PROMETHEUS_PORT]
        caddyfile = render("caddy/Caddyfile.j2", chosen.view(Caddy).values())[0]
        return caddyfile, chosen.view(Caddy).domains, port.callers

    caddyfile, domains, callers = served(HERE, admin_networks=["192.0.2.7"])
    assert "monitor.x.test" not in caddyfile and "monitor.x.test" not in domains
    assert callers and "caddy" not in callers
    tunnel = "\nhttp://monitor.x.test.localhost:8450 {"
    caddyfile, domains, callers = served({**HERE, "admin": ["one"]})
    assert tunnel in caddyfile and "\nmonitor.x.test {" not in caddyfile and "monitor.x.test" not in domains
    assert callers and callers[-1] == "caddy"
    # In a route, what is first in the file is first in a request.
    site = caddyfile.partition(tunnel)[2].partition("\n}\n")[0]
    assert site.index("basicauth") < min(map(site.index, ("reverse_proxy", "import overview_file")))
    caddyfile, domains, _ = served({**HERE, "admin": ["one"]}, admin_networks=["192.0.2.7"])
    assert "\nmonitor.x.test {" in caddyfile and "monitor.x.test" in domains


def test_the_overview_asks_for_figures_that_are_kept(tmp_path: Path) -> None:
    script = (TEMPLATES / "monitoring/overview/overview.js").read_text()
    asked = set(re.findall(r"\b(?:synapse|python|caddy|node|matrix_metal)_\w+", script))
    kept = [re.compile(target.keep) for target in view(tmp_path).targets]
    assert len(asked) > 15 and [name for name in asked if not any(each.fullmatch(name) for each in kept)] == []


def test_the_library_is_pinned(tmp_path: Path) -> None:
    chosen = settings(tmp_path, HERE, MACHINE, admin_email="admin@x.test")
    release = chosen.view(Monitoring).release
    assert release.sha256 and release.url and release.version in release.url
    # In the list of what is installed.
    [component] = release_files(chosen, [f"uplot {release.directory(release.sha256)} {release.sha256}"])
    assert component.purl == f"pkg:npm/uplot@{release.version}"


def test_versions_are_those_that_are_installed(tmp_path: Path) -> None:
    (tmp_path / "ketesa").mkdir()
    (tmp_path / "ketesa" / "current").symlink_to("v1.4.0-0123456789ab")
    sydent = tmp_path / "sydent"
    (sydent / "0123456789ab-py3.13/lib/python3.13/site-packages/matrix_sydent-2.6.1.dist-info").mkdir(parents=True)
    (sydent / "current").symlink_to("0123456789ab-py3.13")
    found = [FIGURES["installed"](tmp_path / name) for name in ("ketesa", "sydent", "mas")]
    assert found == ["v1.4.0", "2.6.1", ""]


def test_backups_are_as_old_as_their_jobs_say(tmp_path: Path) -> None:
    (tmp_path / "database").mkdir()
    (tmp_path / "database" / "wal.json").write_text(
        '{"success": "2026-01-01T00:00:00Z", "failure": "2026-01-01T00:01:00Z"}'
    )
    (tmp_path / "prepared").touch()
    found = FIGURES["backup"]({"backup": str(tmp_path), "late_after": {"wal": 300, "files": 1800}})
    values = {(name, labels["part"]): value for name, labels, value in found}
    assert values["backup_success_seconds", "wal"] == 1767225600 and values["backup_failed", "wal"] == 1
    # The first is due at its time after the deploy.
    assert values["backup_success_seconds", "files"] == (tmp_path / "prepared").stat().st_mtime
    assert values["backup_failed", "files"] == 0 and values["backup_late_seconds", "files"] == 1800


def test_a_service_without_processes_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIGURES["services"].__globals__, "CGROUPS", tmp_path)
    for place, populated in (("a.service", 1), ("b.service", 0), ("system-p.slice/p@1.service", 1)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
        (tmp_path / place / "memory.stat").write_text("anon 4096\nfile 8192\n")
    found = FIGURES["services"](["a.service", "b.service", "c.service", "p@1.service"])
    up = {labels["unit"]: value for name, labels, value in found if name == "unit_up"}
    assert up == {"a.service": 1, "b.service": 0, "c.service": 0, "p@1.service": 1}
    assert ("unit_memory_bytes", {"unit": "a.service"}, 4096) in found


def test_signs_of_damage_are_counted_once(tmp_path: Path) -> None:
    log, note = tmp_path / "postgresql.log", tmp_path / "seen.json"
    log.write_text("ERROR:  invalid page in block 7 of relation base/1/2\n")
    plan = {"postgres_log": str(log)}

    def counted() -> float:
        [value] = [value for _, labels, value in FIGURES["damage"](plan, note) if labels["source"] == "postgresql"]
        return float(value)

    # What was there before is known.
    assert counted() == 0
    with log.open("a") as more:
        more.write(
            "LOG:  checkpoint complete\nWARNING:  page verification failed, calculated checksum 1 but expected 2\n"
        )
    assert [counted(), counted()] == [1, 1]
    # The log was rotated.
    log.write_text("PANIC:  could not read block 9\n")
    assert counted() == 2
