"""`make demo`: what it leaves out, and that what is left fits together."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo import __main__ as demo
from demo import programs
from demo.programs import PROGRAMS, Found
from settings import Settings, choices_from, mistakes
from tests.testbed import Testbed
from tests.unit.test_look import EXPIRED_AUTHORITY
from tests.unit.test_settings import DEFAULTS, MACHINE, ROOT

FROM_RELEASE_PAGES = {"mas", "sliding_sync", "rtc"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a demo on this computer has found or downloaded."""
    monkeypatch.setattr(programs, "FOUND", tmp_path / "found.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for program in PROGRAMS:
        monkeypatch.delenv(program.variable, raising=False)


def test_roles_whose_release_pages_cannot_be_reached_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    found = programs.look_for(lambda text: None)
    assert set(found.missing) == {program.setting for program in PROGRAMS}
    assert not {role.name for role in found.played} & FROM_RELEASE_PAGES
    for program in PROGRAMS:
        assert f"{program.variable}=/path/to/" in found.explanation
    assert "The Matrix Authentication Service, to create accounts in Element X, was left out:" in found.explanation
    assert programs.found() == found


def test_a_program_that_was_named_once_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    archive = tmp_path / "mas-cli.tar.gz"
    archive.touch()
    monkeypatch.setenv("MAS_BINARY", str(archive))
    programs.look_for(lambda text: None)
    monkeypatch.delenv("MAS_BINARY")
    found = programs.look_for(lambda text: None)
    assert found.given == {"mas_archive": str(archive)} and "mas_archive" not in found.missing
    assert FROM_RELEASE_PAGES & {role.name for role in found.played} == {"mas"}


def test_a_program_that_is_not_there_is_refused_before_a_host_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Testbed, "up", lambda *given, **named: pytest.fail("a host is made"))
    monkeypatch.setenv("MAS_BINARY", str(tmp_path / "mas-cli.tar.gz"))
    monkeypatch.setenv("LK_JWT_BINARY", str(tmp_path))
    assert demo.main() == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"MAS_BINARY={tmp_path}/mas-cli.tar.gz: there is no such file; it names mas-cli-")
    assert second.startswith(f"LK_JWT_BINARY={tmp_path}: there is no such file; it names lk-jwt-service_linux_")


@pytest.mark.parametrize("missing", [(), tuple(program.setting for program in PROGRAMS)], ids=["all", "without"])
def test_inventory_and_settings_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    monkeypatch.setattr(programs, "found", lambda: Found({}, dict.fromkeys(missing, "it is not there")))
    monkeypatch.setenv("TESTBED_DIRECTORY", str(tmp_path))
    (tmp_path / "network.json").write_text(json.dumps({"subnet": "10.77.7.0/24"}))
    host = SimpleNamespace(address="10.77.7.9", ssh_key="key", known_hosts="known_hosts")
    monkeypatch.setattr(Testbed, "get", lambda self, name: host)
    groups = {
        name: [machine for machine, _ in machines]
        for name, machines in runpy.run_path(str(ROOT / "demo" / "demo.py")).items()
        if isinstance(machines, list) and not name.startswith("_")
    }
    chosen = runpy.run_path(str(ROOT / "demo" / "group_data" / "demo.py"))
    given = {**DEFAULTS, **{name: value for name, value in chosen.items() if name in DEFAULTS}}
    assert ("mas" in groups) == (not missing) and {"postgres", "synapse", "caddy", "coturn"} < set(groups)
    assert mistakes(Settings(choices_from(given, "demo"), "demo", groups, "demo", MACHINE, inventories=tmp_path)) == []


def test_it_ends_with_what_to_open_in_a_browser_or_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root.crt").write_bytes(EXPIRED_AUTHORITY)
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "ROOT_CERTIFICATE", tmp_path / "root.crt")
    *_, before, last = demo.report("10.77.7.9", 70, Found({}, {})).splitlines()
    assert before.startswith("    chromium ") and before.endswith("= \\")
    assert last == (
        '        --host-resolver-rules="MAP demo.test 10.77.7.9, MAP *.demo.test 10.77.7.9" https://chat.demo.test/'
    )
    without = demo.report("10.77.7.9", 70, Found({}, {"element_archive": "it is not there"}))
    assert without.endswith("There is no client to sign up and write in a browser without Element Web: see above.")
    assert "ELEMENT_WEB_ARCHIVE=/path/to/" in without
