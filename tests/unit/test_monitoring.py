"""The monitoring: where it may be, what it says of the backup, the services and damage, and how it mails."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from operations.templating import TEMPLATES, render
from settings import SettingError, mistakes
from settings.monitoring import ALERT_SUBJECT, ALERT_TEXT, Monitoring, presented
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
