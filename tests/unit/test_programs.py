"""What a run says about programs below /opt: which versions change, which one did not come up, and why."""

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from compat import TOLD
from operations import preflight
from operations.machine import Failure, InUse, Machine, MachineState
from operations.shell import shell_file
from releases import record
from roles import ROLES
from settings import Settings
from settings.sliding_sync import VERSION, SlidingSync
from settings.sydent import Sydent
from settings.synapse import Synapse
from tests.unit.test_settings import MACHINE, chosen
from tests.unit.test_settings import settings as settings_of

OLD, BAD = "1.100.0", "0123456789ab"


def settings(tmp_path: Path, machine: MachineState = MACHINE, **choices: object) -> Settings:
    roles = {role: ["one"] for role in ("postgres", "synapse", "sliding_sync", "caddy")}
    return Settings(chosen(**choices), "prod", roles, "one", machine, inventories=tmp_path)


def wanted(tmp_path: Path) -> tuple[str, str]:
    """Directory and version of Synapse, as it is locked."""
    virtualenv = settings(tmp_path).view(Synapse).virtualenv
    return virtualenv.key, virtualenv.version


def test_machine_says_what_is_in_use_and_what_has_failed() -> None:
    state = Machine().answer(
        [
            "program mas v1.2.3-0123456789ab v1.2.3",
            "failure mas\tv1.2.4-0123456789ab\t2026-11-26 21:00 UTC\tIt: cannot",
            "failure x\t",
        ]
    )
    assert state.programs == {"mas": InUse("v1.2.3-0123456789ab", "v1.2.3")}
    assert state.failures == {"mas": Failure("v1.2.4-0123456789ab", "2026-11-26 21:00 UTC", "It: cannot")}


@pytest.mark.parametrize("executes", [False, True])
def test_versions_that_change_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], executes: bool
) -> None:
    key, version = wanted(tmp_path)
    host, lines = SimpleNamespace(name="one"), list[str]()
    monkeypatch.setattr(preflight, "executes", lambda: executes)
    monkeypatch.setattr(preflight, "add_final_line", lines.append)

    def told(**programs: InUse) -> list[str]:
        lines.clear()
        found = replace(MACHINE, programs={name.replace("_", "-"): each for name, each in programs.items()})
        preflight._say_what_is_upgraded(host, settings(tmp_path, found))  # type: ignore[arg-type]
        return [*lines, *(line.removeprefix("--> ") for line in capsys.readouterr().err.splitlines())]

    assert told() == [], "nothing is there yet"
    assert told(matrix_synapse=InUse("abc-py3.13", OLD)) == [f"Synapse {OLD} -> {version} on one"]
    assert told(matrix_synapse=InUse(key, version)) == []
    assert told(matrix_synapse=InUse("abc-py3.13", version)) == [f"Synapse {version} -> {version}, built anew, on one"]
    # Its checksum is not known before it is downloaded.
    assert told(sliding_sync=InUse(f"{VERSION}-{BAD}", VERSION)) == []
    assert told(sliding_sync=InUse(f"v0.1.0-{BAD}", "v0.1.0")) == [f"Sliding Sync proxy v0.1.0 -> {VERSION} on one"]


def test_programs_of_every_role_are_listed_by_their_titles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {program: InUse(f"v0-{BAD}", "v0") for role in ROLES.values() for program in role.programs if program != "uv"}
    monkeypatch.setattr(preflight, "executes", lambda: True)
    every = settings_of(tmp_path, machine=replace(MACHINE, programs=old), cinny=True)
    preflight._say_what_is_upgraded(SimpleNamespace(name="one"), every)  # type: ignore[arg-type]
    told = [line.removeprefix("--> ").partition(" v0 -> ") for line in capsys.readouterr().err.splitlines()]
    releases = {release.name: release.version for _, view in every.views for release in view.programs}
    assert {title: new.removesuffix(" on one") for title, _, new in told} == {
        "Synapse": wanted(tmp_path)[1],
        "Sydent": every.view(Sydent).virtualenvs[0].version,
        "Matrix Authentication Service": releases["mas"],
        "Sliding Sync proxy": releases["sliding-sync"],
        "LiveKit": releases["livekit"],
        "lk-jwt-service": releases["lk-jwt-service"],
        "Element Web": releases["element-web"],
        "Cinny": releases["cinny"],
        "Ketesa": releases["ketesa"],
        "uPlot": releases["uplot"],
    }
    assert len(told) == len(old)


def test_a_version_that_did_not_come_up_is_refused_until_asked_for(tmp_path: Path) -> None:
    key, version = wanted(tmp_path)

    def refused(failed: str = key, now: str = "abc-py3.13", **choices: object) -> list[str]:
        machine = replace(
            MACHINE,
            programs={"matrix-synapse": InUse(now, OLD)},
            failures={"matrix-synapse": Failure(failed, "yesterday", "No module named 'x'")},
        )
        return preflight._failed_before(settings(tmp_path, machine, **choices))

    [line] = refused()
    assert line.startswith(
        f"Synapse {version} was tried on yesterday and did not come up: No module named 'x'. {OLD} serves."
    )
    assert f"--data try_again={version}" in line
    assert refused(try_again=version) == []
    assert len(refused(try_again="1.0.0")) == 1
    assert refused(failed="def-py3.13") == [], "another one failed"
    assert refused(now=key) == [], "it runs"


def test_another_file_of_the_same_release_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = settings(tmp_path).view(SlidingSync).release
    machine = replace(
        MACHINE,
        programs={"sliding-sync": InUse(f"{VERSION}-aaaaaaaaaaaa", VERSION)},
        failures={"sliding-sync": Failure(f"{VERSION}-{BAD}", "yesterday", "no")},
    )
    sha256 = {MACHINE.architecture: BAD + "0" * 52}
    given = settings(tmp_path, machine, sliding_sync_sha256=sha256)
    [line] = preflight._failed_before(given)
    assert f"did not come up: no. The {VERSION} of before serves. Repair the cause" in line
    lines: list[str] = []
    monkeypatch.setattr(preflight, "add_final_line", lines.append)
    monkeypatch.setattr(preflight, "executes", lambda: False)
    preflight._say_what_is_upgraded(SimpleNamespace(name="one"), given)  # type: ignore[arg-type]
    assert lines == [f"Sliding Sync proxy {VERSION} -> {VERSION}, another file, on one"]
    sha256 = {MACHINE.architecture: "f" * 64}
    assert preflight._failed_before(settings(tmp_path, machine, sliding_sync_sha256=sha256)) == []
    assert not release.record.exists() and record.is_sha256("f" * 64)


# --- operations/sh/program.sh ---------------------------------------------------------------------


def run(tmp_path: Path, *lines: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run lines of shell after it, with a journal and a systemd that print what is in the test's directory."""
    for name in ("journalctl", "systemctl"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ncat {tmp_path}/{name}.answer 2>/dev/null\ntrue\n")
        program.chmod(0o755)
    values = {"home": f"{tmp_path}/opt", "kept": f"{tmp_path}/kept", "title": "Synapse", "unit": "x.service"}
    given = {**values, "distribution": "", "wanted": "", "one_way": "", **variables}
    text = "\n".join(
        [f"PATH={tmp_path}:$PATH", 'compatible() { printf %s "${answer:-}"; }', shell_file("program"), *lines]
    )
    return subprocess.run(["sh", "-euc", text], env={**given, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("journal", "output", "why"),
    [
        (
            "Stopping X...\nI stop.\nStopped X.\nStarting X...\nTraceback:\n  Error: it is wrong.\n\nMore in the logs.\n****\n"
            "x.service: Main process exited, code=exited, status=1/FAILURE\nx.service: Failed with result 'exit-code'.\n",
            "",
            "Error: it is wrong",
        ),
        ("Failure of before.\nStarting X...\nI begin.\nI go.\n----\n", "", "I go"),
        (
            "I stop.\nStarting X...\nx.service: Main process exited, code=exited, status=203/EXEC\n"
            "x.service: Scheduled restart job, restart counter is at 1.\n",
            "",
            "x.service: Main process exited, code=exited, status=203/EXEC",
        ),
        ("", "Error in configuration:\n  no such key\nx.service was not touched: see above\n", "no such key"),
        (
            "Starting X...\nI begin.\nStarted X.\n",
            "x.service failed to answer within 60 s; the end of its log:\nI begin.\nStarted X.\n",
            "it did not answer within 60 s",
        ),
        (
            "Starting X...\nStarted X.\nError: no database\n",
            "x.service failed to answer within 60 s; the end of its log:\nStarted X.\nError: no database\n",
            "Error: no database",
        ),
    ],
    ids=["its last error", "its last line", "it has none", "it was not started", "it hangs", "it hangs with an error"],
)  # fmt: skip
def test_why_a_unit_did_not_come_up(tmp_path: Path, journal: str, output: str, why: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/output").write_text(output)
    (tmp_path / "journalctl.answer").write_text(journal)
    assert run(tmp_path, "began=0", "why").stdout.rstrip("\n") == why


@pytest.mark.parametrize(("one", "other", "called"), [("1-abc", "2-abc", "1"), ("1-abc", "1-def", "The 1 of before")])
def test_what_the_version_before_is_called(tmp_path: Path, one: str, other: str, called: str) -> None:
    """Two files may be of the same version."""
    assert run(tmp_path, f"before {one} {other}").stdout == f"{called}\n"


def test_files_are_put_back_as_they_were(tmp_path: Path) -> None:
    """Owner and mode included; a file that only the new version has is gone."""
    home = tmp_path / "opt"
    for version in ("one", "two"):
        (home / version).mkdir(parents=True)
    (home / "current").symlink_to("one")
    there, new = tmp_path / "a file", tmp_path / "new"
    there.write_text("old")
    there.chmod(0o640)
    kept = f"keep '{there}' '{new}'"
    assert run(tmp_path, "systemctl() { false; }", kept).returncode == 0
    assert not (tmp_path / "kept").exists(), "it does not run: there is nothing to go back to"
    assert run(tmp_path, kept).returncode == 0
    # An interrupted run, and another one.
    (home / "current").unlink()
    (home / "current").symlink_to("two")
    there.write_text("newer")
    there.chmod(0o600)
    new.write_text("new")
    assert run(tmp_path, kept).returncode == 0
    assert run(tmp_path, 'from=$(cat "$kept/from")', "put_back").returncode == 0
    assert (there.read_text(), there.stat().st_mode & 0o777, new.exists()) == ("old", 0o640, False)
    assert (home / "current").readlink() == Path("one")


@pytest.mark.parametrize(
    ("answer", "one_way", "told"),
    [
        ("both ways", "", ""),
        ("", "", ""),
        ("one-way", "", "from Synapse 2 there is no way back: "),
        ("one-way", "2", ""),
        ("one-way", "1", "from Synapse 2 there is no way back: "),
        ("impossible", "2", "Synapse 2 cannot run with the data any more"),
    ],
)
def test_a_version_without_a_way_back_is_refused(tmp_path: Path, answer: str, one_way: str, told: str) -> None:
    (tmp_path / "opt/1-abc").mkdir(parents=True)
    (tmp_path / "opt/current").symlink_to("1-abc")
    done = run(tmp_path, "may_switch 2-abc", answer=answer, one_way=one_way, wanted="2")
    assert (done.returncode == 0) == (told == "")
    assert done.stderr.startswith(TOLD + told) if told else done.stderr == ""
