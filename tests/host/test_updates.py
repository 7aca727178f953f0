"""Security updates: they are installed at the set hour, nothing is left out, and nothing still runs what they have replaced."""

import re

import pytest
from testinfra.host import Host

from manage.judgement import updates_reasons
from manage.look import UPDATES_QUESTION, UpdatesSeen
from roles import UPDATES_JOBS
from settings import Settings
from settings.updates import Updates
from tests.host.report import Note
from tests.host.services import DEPLOY, ask


@pytest.fixture(scope="module")
def updates(settings: Settings) -> Updates:
    return settings.view(Updates)


def test_their_timers_run(host: Host, updates: Updates) -> None:
    for job in UPDATES_JOBS:
        shown = ask(host, "systemctl show -p ActiveState -p UnitFileState -p TimersCalendar %s", f"{job}.timer")
        assert "ActiveState=active" in shown and "UnitFileState=enabled" in shown, (
            f"{job}.timer is not active and enabled: {DEPLOY}"
        )
        hours = re.findall(r"OnCalendar=\*-\*-\* (\d\d:\d\d):00 UTC ", shown)
        assert f"*-*-* {', '.join(hours)} UTC" == updates.when(job), (
            f"{job}.timer is not set to {updates.when(job)}: {DEPLOY}; `systemctl cat {job}.timer` shows whose drop-in does that"
        )


def test_security_updates_are_chosen(host: Host, updates: Updates) -> None:
    """Also by files of the administrator's, which come after ours."""
    shown = ask(host, "apt-config dump")
    for wanted in (
        'APT::Periodic::Enable "1";',
        'APT::Periodic::Update-Package-Lists "always";',
        'APT::Periodic::Unattended-Upgrade "always";',
        *(f'Unattended-Upgrade::Origins-Pattern:: "{origin}";' for origin in updates.origins),
    ):
        assert wanted in shown, (
            f"apt's configuration does not have `{wanted}`: {DEPLOY}; see the files in /etc/apt/apt.conf.d after 60matrix-metal"
        )


def test_they_are_installed(host: Host, updates: Updates, note: Note) -> None:
    found = UpdatesSeen.of(ask(host, "sh -c %s", UPDATES_QUESTION).splitlines())
    if found.installed:
        note("updates", f"security updates: {found.installed:%Y-%m-%d %H:%M} UTC")
    wrong = list(updates_reasons(found, updates.reboot))
    assert not wrong, "\n".join(wrong)


def test_no_service_runs_what_was_replaced(host: Host, settings: Settings) -> None:
    ours = {settings.written(unit.name) for role in settings.played for unit in role.units}
    shown = ask(host, "needrestart -b -l")
    outdated = sorted(ours & set(re.findall(r"^NEEDRESTART-SVC: (.*)$", shown, re.MULTILINE)))
    assert not outdated, (
        f"{', '.join(outdated)} still run files that were replaced: systemctl restart {' '.join(outdated)}, or wait for the "
        "hour of the updates"
    )
