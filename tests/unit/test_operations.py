"""When a unit is restarted, reloaded or left alone; which files are changed, and what --diff shows of them."""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from operations import files, lock, machine, packages, preflight, refusal, units, users
from operations.files import Contents, Copy, Directory, Paths, State, Text
from operations.machine import Machine, MachineState
from operations.shell import question_command, quoted, script, shell_file
from operations.templating import MASK
from operations.units import Unit, UnitState
from operations.users import Account
from operations.virtualenvs import Intact, Virtualenv
from roles import MAS, VaultEntry
from vault import Secret, Vault


class FakeHost:
    """A machine that answers facts with the values of the test, one after the other."""

    name = "one"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.logged: list[str] = []
        self.asked: list[dict[str, Any]] = []

    def get_fact(self, fact: type, **arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.answers.pop(0)

    def noop(self, text: str) -> None:
        pass

    def log(self, text: str) -> None:
        self.logged.append(text)


def at(monkeypatch: pytest.MonkeyPatch, module: Any, host: FakeHost) -> None:
    """Make the module's operations use this machine, of a run that only plans, whatever runs other tests have begun."""
    planning = SimpleNamespace(is_executing=False)
    for name, replacement in (("host", host), ("ask", host.get_fact), ("state", planning)):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, replacement)


def commands(operation: Any, **arguments: Any) -> list[str]:
    """The commands that the operation would run on the machine."""
    inner: Iterator[Any] = operation._inner(**arguments)
    return [str(command) for command in inner]


# --- units ----------------------------------------------------------------------------------------

UNIT = "/etc/systemd/system/x.service"
RUNNING = {
    "load": "loaded",
    "active": "active",
    "enabled": "enabled",
    "started": 100.0,
    "changed": 100.0,
    "ready": True,
}


def test_a_new_unit_that_changes_another_has_all_definitions_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*reads: str) -> str:
        at(monkeypatch, units, FakeHost(UnitState()))
        steps = "\n".join(commands(units.running, unit="x.path", reads=reads)).partition("wait_ready()")[2]
        [line] = [line for line in steps.splitlines() if line.startswith("read_")]
        return line

    assert read("/etc/a") == "read_changed x.path"
    assert read("/etc/a", "/etc/systemd/system/x.service") == "read_changed x.path x.service"
    assert read("/etc/systemd/system/nftables.service.d/x.conf") == "read_definitions x.path"


@pytest.mark.parametrize(
    ("state", "done"),
    [
        ("ActiveState=inactive\nNeedDaemonReload=no\nUnitFileState=", "read nothing"),
        ("ActiveState=activating\nNeedDaemonReload=no\nUnitFileState=enabled", "start x.service\nread nothing"),
        ("ActiveState=inactive\nNeedDaemonReload=yes\nUnitFileState=enabled", "read"),
        ("ActiveState=inactive\nNeedDaemonReload=no\nUnitFileState=disabled", "read"),
    ],
)
def test_a_start_that_an_interrupted_run_began_is_waited_for(state: str, done: str) -> None:
    """Also if it had not begun when the machine was looked at: Synapse, killed while it created its tables, did not come up."""
    program = [
        shell_file("definitions"),
        f'systemctl() {{ case $1 in show) printf {quoted(state)} ;; *) echo "$@" ;; esac; }}',
        "found='read nothing'",
        "read_definitions() { found=read; }",
        'read_changed x.service y.service; echo "$found"',
    ]
    ran = subprocess.run(["sh"], input="\n".join(program), capture_output=True, text=True, check=True)
    assert ran.stdout == f"{done}\n"


def decided(monkeypatch: pytest.MonkeyPatch, written: Sequence[tuple[str, float]] = (), **now: Any) -> set[str]:
    """What is done with a unit in this state: a set of the words below."""
    state = UnitState(**{**RUNNING, **now}, written=tuple(written))
    at(monkeypatch, units, FakeHost(state))
    done = commands(units.running, unit="x.service", reads=["/etc/a"], rereads=["/etc/b"], check="try-it", ready="ask")
    # The functions come first; they are only defined there.
    steps = "\n".join(done).partition("is-active --quiet x.service || failed")[2]
    words = {
        "start": "systemctl restart x.service",
        "reload": "systemctl reload x.service",
        "enable": "systemctl enable --quiet x",
        "enable-offline": "systemctl enable --quiet --root=/ x",
        "read": "read_definitions",
        "read-changed": "read_changed x.service",
        "daemon-reload": "systemctl daemon-reload",
        "forget": "forget_definitions",
        "check": "try-it",
        "wait": "wait_ready",
    }
    return {name for name, word in words.items() if word in steps}


def test_unit_newer_than_its_files_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, [("/etc/a", 99.9), ("/etc/b", 99.9), (UNIT, 99.9)]) == set()


def test_unit_older_than_a_file_it_reads_is_checked_and_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, [("/etc/a", 100.1)]) == {"read", "check", "start", "wait"}


def test_unit_older_than_its_own_definition_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after somebody else ran daemon-reload, which resets NeedDaemonReload."""
    assert decided(monkeypatch, [(UNIT, 100.1)]) == {"read", "check", "start", "wait"}
    assert decided(monkeypatch, definition_changed=True) == {"check", "start", "wait", "forget", "read"}


def test_unit_that_rereads_is_reloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, [("/etc/b", 100.1)]) == {"check", "reload", "wait"}
    # A reload counts: systemd records it as a change of state.
    assert decided(monkeypatch, [("/etc/b", 100.1)], changed=100.2) == set()
    # But it does not make the unit read what is read only at the start.
    assert decided(monkeypatch, [("/etc/a", 100.1)], changed=100.2) == {"read", "check", "start", "wait"}


def test_restart_makes_reload_superfluous(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, [("/etc/a", 100.1), ("/etc/b", 100.1)]) == {"read", "check", "start", "wait"}


@pytest.mark.parametrize("active", ["inactive", "failed", "activating", "deactivating"])
def test_unit_that_does_not_run_is_started(monkeypatch: pytest.MonkeyPatch, active: str) -> None:
    assert decided(monkeypatch, active=active, ready=False) == {"read", "check", "start", "wait"}


def test_new_unit_is_loaded_enabled_and_started(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"check", "start", "wait", "enable-offline", "read"}
    # systemd reads its definition when it starts it.
    new = {*expected, "read-changed"} - {"read"}
    for load in ("not-found", "loaded"):
        never: dict[str, Any] = {"load": load, "active": "inactive", "enabled": "", "changed": 0.0, "ready": False}
        assert decided(monkeypatch, **never) == new
        assert decided(monkeypatch, **never, definition_changed=True) == {*expected, "forget"}
    # It ran already: its definition may be that of then.
    for active in ("inactive", "failed"):
        assert decided(monkeypatch, load="not-found", active=active, enabled="", ready=False) == expected
    assert decided(monkeypatch, active="inactive", enabled="disabled", ready=False) == expected
    # systemd remembers a mask that was taken away.
    masked: dict[str, Any] = {"load": "masked", "active": "inactive", "ready": False}
    assert decided(monkeypatch, **masked, enabled="masked-runtime") == {*expected, "forget"}
    assert decided(monkeypatch, **masked, enabled="static") == {*expected, "forget"} - {"enable-offline"}


def test_disabled_unit_is_enabled_without_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, enabled="disabled") == {"enable"}


def test_unit_that_does_not_answer_is_given_time_then_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, ready=False) == {"wait", "read", "start"}


def test_unit_that_is_slow_to_start_is_not_waited_for_longer_than_it_takes_to_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def done(active: str) -> str:
        at(monkeypatch, units, FakeHost(UnitState(load="loaded", active=active)))
        return "\n".join(commands(units.running, unit="x.service", reads=["/etc/a"], ready="ask", slow_to_start=True))

    assert "systemctl start --no-block x.service" in done("inactive")
    assert "auto-restart" in done("inactive"), "its first failure says why: the others are not waited for"
    # The old process would answer.
    monkeypatch.setattr(UnitState, "newer_than", lambda *_: True)
    assert "--no-block" not in done("active") and "systemctl restart x.service" in done("active")


def test_a_first_start_that_goes_on_is_waited_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other: a unit that runs, or that has a way back, is waited for at once."""

    def done(**now: Any) -> list[str]:
        at(monkeypatch, units, FakeHost(UnitState(**now)))
        about: dict[str, Any] = {"unit": "x.service", "check": "try-it", "ready": "ask"}
        first = commands(units.running, **about, reads=["/etc/a"], first_start_goes_on=True)
        later = commands(units.started, **about)
        return ["\n".join(each).partition("is-active --quiet x.service || failed")[2] for each in (first, later)]

    first, later = done(load="loaded")
    assert "systemctl start --no-block x.service" in first and "wait_ready" not in first and "try-it" not in first
    assert "(wait_ready) 2>&1" in later and later.index("try-it") < later.index("systemctl stop x.service")
    for now in ({"load": "loaded", "changed": 1.0}, {"load": "loaded", "active": "activating"}, {"load": "masked"}):
        first, later = done(**now)
        assert "systemctl restart x.service" in first and "wait_ready" in first and "try-it" in first
        assert later == ""


def test_unit_state_is_read_from_systemd() -> None:
    state = Unit().answer(
        [
            "LoadState=loaded",
            "ActiveState=active",
            "UnitFileState=enabled",
            "NeedDaemonReload=no",
            "ExecMainStartTimestamp=Mon 2026-11-23 22:44:41.500000 UTC",
            "ActiveEnterTimestamp=Mon 2026-11-23 22:44:43.000000 UTC",
            "StateChangeTimestamp=Mon 2026-11-23 22:45:00.250000 UTC",
            "Written=1795473882.750000000 /etc/a file with spaces",
            "Ready=yes",
        ]
    )
    # A file that is written while the unit starts may have come too late: the beginning of the start counts.
    assert state.changed - state.started == 18.75
    assert state.written == (("/etc/a file with spaces", 1795473882.75),)
    assert state.ready and state.newer_than(state.started, ["/etc/a file with spaces"])


def test_unit_that_never_ran_has_no_times() -> None:
    state = Unit().answer(["LoadState=not-found", "ExecMainStartTimestamp=", "ActiveEnterTimestamp=n/a"])
    assert (state.started, state.changed, state.active) == (0.0, 0.0, "inactive")


# --- files ----------------------------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, host: FakeHost, diff: bool = False) -> None:
    """Make the modules believe that this is a dry run on the machine, with or without --diff."""
    state = SimpleNamespace(config=SimpleNamespace(DIFF=diff), is_executing=False)
    for module in (files, refusal):
        at(monkeypatch, module, host)
        monkeypatch.setattr(module, "state", state)


def touched(
    monkeypatch: pytest.MonkeyPatch, entry: Any, now: State | None, diff: bool = False
) -> tuple[list[str], FakeHost]:
    host = FakeHost({entry.path: now} if now else {})
    pretend(monkeypatch, host, diff)
    return commands(files.present, entries=[entry]), host


def on_disk(tmp_path: Path) -> State:
    """The answer about a file, by running the fact's own command."""
    answer = subprocess.run(
        ["sh", "-c", question_command(Paths().question([str(tmp_path)]))], capture_output=True, text=True, check=True
    )
    return Paths().process(answer.stdout.splitlines())[str(tmp_path)]


def test_kinds_and_modes_of_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x\n")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "it's a dir").mkdir(mode=0o750)
    assert (on_disk(tmp_path / "file").kind, on_disk(tmp_path / "file").mode) == ("file", "640")
    assert on_disk(tmp_path / "link").kind == "link"
    assert (on_disk(tmp_path / "it's a dir").kind, on_disk(tmp_path / "it's a dir").mode) == ("directory", "750")


@pytest.mark.parametrize(
    ("change", "repaired"),
    [
        ({}, False),
        ({"mode": "644"}, True),
        ({"user": "nobody"}, True),
        ({"group": "adm"}, True),
        ({"sha256": "0"}, True),
    ],
)
def test_file_is_changed_only_if_it_differs(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], repaired: bool
) -> None:
    sha256 = "73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ac"  # of x and a newline
    now = State(**{"kind": "file", "mode": "600", "user": "root", "group": "root", "sha256": sha256, **change})
    done, _ = touched(monkeypatch, Text("/etc/x", "x\n", mode="600"), now)
    assert bool(done) == repaired


def test_new_file_is_complete_and_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It gets its mode before it is in place, and if the check fails the old file stays."""
    target = tmp_path / "x"
    target.write_text("old\n")
    me = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    group = subprocess.run(["id", "-gn"], capture_output=True, text=True, check=True).stdout.strip()
    for check, expected in (("false", "old\n"), ("grep -q new {}", "new\n")):
        entry = Text(str(target), "new\n", mode="640", user=me, group=group, check=check)
        pretend(monkeypatch, FakeHost({}))
        [command] = files.present._inner(entries=[entry])
        [stdin] = command.connector_arguments["_stdin"]
        subprocess.run(["sh", "-c", str(command)], input=stdin, text=True, check=False)
        assert target.read_text() == expected
        assert list(tmp_path.iterdir()) == [target], "a temporary file is left"
    assert target.stat().st_mode & 0o777 == 0o640


def test_several_files_are_put_in_place_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In one command. The first whose check fails ends it; those before it are there, and a check cannot read the next file."""
    owner = {"user": tmp_path.owner(), "group": tmp_path.group()}
    entries = [
        Directory(f"{tmp_path}/it's", mode="750", **owner),
        Text(f"{tmp_path}/it's/a", "one\n", mode="644", check="cat; grep -q one {}", **owner),
        Text(f"{tmp_path}/it's/empty", "", mode="600", **owner),
        Text(f"{tmp_path}/b", Secret("end\n$(false)\n"), mode="640", **owner),
        Text(f"{tmp_path}/c", "three\n", mode="644", check="echo no; false", **owner),
        Text(f"{tmp_path}/d", "four\n", mode="644", **owner),
    ]
    pretend(monkeypatch, FakeHost({}))
    [command] = files.present._inner(entries=entries)
    [stdin] = command.connector_arguments["_stdin"]
    done = subprocess.run(["sh", "-c", str(command)], input=stdin, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "no\n", "")
    found = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*")}
    assert {name: oct(path.stat().st_mode & 0o777) for name, path in found.items()} == {
        **{"it's": "0o750", "it's/a": "0o644", "it's/empty": "0o600", "b": "0o640"}
    }
    assert [found[name].read_text() for name in ("it's/a", "it's/empty", "b")] == ["one\n", "", "end\n$(false)\n"]


def test_nothing_is_put_in_place_unless_all_has_arrived(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A connection ends in a file, or between two: the shell would take the end of its input for the end of the file."""
    me = {"user": tmp_path.owner(), "group": tmp_path.group()}
    entries = [Text(f"{tmp_path}/{name}", name * 60, mode="600", **me) for name in ("one", "two")]
    pretend(monkeypatch, FakeHost({}))
    [command] = [*files.present._inner(entries=entries)]
    [stdin] = command.connector_arguments["_stdin"]
    lines = [match.end() for match in re.finditer("\n", stdin)][:-1]
    for end in (*lines, *(each + 4 for each in lines[:-1])):
        subprocess.run(["sh", "-c", str(command)], input=stdin[:end], capture_output=True, text=True, check=False)
        assert not list(tmp_path.iterdir()), stdin[:end]
    replacing = files.replaced(entries[0])
    [stdin] = replacing.connector_arguments["_stdin"]
    subprocess.run(["sh", "-c", str(replacing)], input=stdin, text=True, check=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one" * 60]


@pytest.mark.parametrize("directory", [True, False])
def test_all_is_read_although_the_first_file_cannot_be_put_in_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, directory: bool
) -> None:
    """pyinfra sends everything before it reads, and says no more than that it could not."""
    me = {"user": tmp_path.owner(), "group": tmp_path.group()}
    wrong = Text(f"{tmp_path}/x", "x", mode="600", check="false", **me)
    pretend(monkeypatch, FakeHost({}))
    entries = [
        Directory("/dev/null/x", mode="755") if directory else wrong,
        Text(f"{tmp_path}/y", "y" * 1_000_000, mode="600", **me),
    ]
    [command] = files.present._inner(entries=entries)
    [stdin] = command.connector_arguments["_stdin"]
    with subprocess.Popen(["sh", "-c", str(command)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin
        process.stdin.write(stdin.encode())
    assert process.returncode == 1 and not list(tmp_path.iterdir())


def test_secret_is_not_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    [command], _ = touched(monkeypatch, Text("/etc/x", Secret("hidden-value"), mode="600"), None)
    assert "hidden-value" not in command and "aGlkZGVuLXZhbHVl" not in command


@pytest.mark.parametrize("mode", ["644", "604", "664"])
def test_secret_readable_by_everybody_is_refused(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    with pytest.raises(Exception, match="readable by everybody"):
        touched(monkeypatch, Text("/etc/x", Secret("hidden"), mode=mode), None)


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (Directory("/x", mode="755"), "file"),
        (Text("/x", "", mode="644"), "directory"),
        (Copy("/x", "sydent/brand/mail.j2", mode="644"), "link"),
    ],
)
def test_entry_of_another_kind_is_never_removed(monkeypatch: pytest.MonkeyPatch, entry: Any, kind: str) -> None:
    with pytest.raises(Exception, match="move it away and run again"):
        touched(monkeypatch, entry, State(kind, "755", "root", "root"))


def test_every_difference_is_shown_before_the_first_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run stops at the first command."""
    host = FakeHost({}, [], [])
    pretend(monkeypatch, host, diff=True)
    entries: list[files.Entry] = [
        Directory("/etc/d", mode="755"),
        Text("/etc/a", "first\n", mode="644"),
        Text("/etc/b", "second\n", mode="644"),
    ]
    next(files.present._inner(entries=entries))
    shown = "\n".join(host.logged)
    assert "+first" in shown and "+second" in shown


# --- what --diff reads and shows ------------------------------------------------------------------


def read(path: Path, wanted: Sequence[str]) -> list[str]:
    """What --diff would read of a file on the machine, if these lines are wanted there."""
    secret = [(line.split(MASK)[0], line) for line in wanted if MASK in line]
    command = question_command(Contents().question(str(path), secret))
    answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    return Contents().process(answer.stdout.splitlines())


@pytest.mark.parametrize(
    ("wanted", "old"),
    [
        ("static-auth-secret=*****", "static-auth-secret=OLD"),
        ("static-auth-secret=*****", "#static-auth-secret = OLD"),
        ('  smtp_pass: "*****"', '  smtp_pass: "OLD"'),
        ('  smtp_pass: "*****"', "smtp_pass: OLD"),
        ("email.smtppassword = *****", "email.smtppassword=OLD"),
        ("SYNCV3_SECRET=*****", 'SYNCV3_SECRET="OLD"'),
        ('\t\teab "key/1" *****', '\teab "another" "OLD"'),
    ],
)
def test_old_secret_never_leaves_the_machine(tmp_path: Path, wanted: str, old: str) -> None:
    """-vvv prints what is read, so it is masked before that."""
    path = tmp_path / "x"
    path.write_text(f"first\n{old}\nlast\n")
    lines = read(path, ["first", wanted, "last"])
    assert "OLD" not in "".join(lines)
    assert (lines[0], len(lines), lines[2]) == ("first", 3, "last")


def test_unchanged_secret_is_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('one\n  smtp_pass: "SECRET"\n')
    assert read(path, ["two", '  smtp_pass: "*****"']) == ["one", '  smtp_pass: "*****"']


def test_file_with_nothing_but_a_secret_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = State("file", "600", "root", "root", "0" * 64)
    _, host = touched(monkeypatch, Text("/etc/x", Secret("hidden"), mode="600"), now, True)
    assert len(host.asked) == 1, "only about the path, not about the content"
    assert host.logged == ["/etc/x: contains nothing but a secret, which differs"]


# --- machine and packages -------------------------------------------------------------------------


def test_machine_state_is_parsed() -> None:
    state = Machine().answer(
        [
            "user admin",
            "root yes",
            "distribution debian",
            "release 13",
            "architecture amd64",
            "processors 3",
            "memory 3910",
            "disk 20000",
            "addresses 192.0.2.1 2001:db8::1 ",
            "name matrix.x.test 127.0.1.1 fe80::1%eth0 ",
            "name x.test ",
            "interface eth0 192.0.2.1",
            "interface docker0 172.17.0.1",
            "outgoing eth0 192.0.2.1",
            "postgresql 15",
            "postgresql 9",
            'deployment {"server_name": "x.test", "vault": "1"}',
            'listener tcp [::1] 80 users:(("nginx",pid=7,fd=6)) 7 nginx.service',
            "listener udp * 3478  0 ",
            "connection 198.51.100.9 50123 192.0.2.1 2222",
            "data 17",
            "data 9",
            "server 17",
            "backed_up_as matrix.x.test",
        ]
    )
    assert (state.data, state.servers, state.backed_up_as) == (("9", "17"), ("17",), "matrix.x.test")
    assert (state.user, state.root, state.processors, state.memory) == ("admin", True, 3, 3910)
    assert state.names == {"matrix.x.test": ("127.0.1.1", "fe80::1"), "x.test": ()}
    assert state.interfaces == (("eth0", "192.0.2.1"), ("docker0", "172.17.0.1"))
    assert state.outgoing == (("eth0", "192.0.2.1"),)
    assert state.postgresql == ("9", "15")
    assert state.deployment == {"server_name": "x.test", "vault": "1"}
    assert state.came_to == 2222
    web, relay = state.listeners
    assert (web.program, web.pid, web.unit, web.port) == ("nginx", 7, "nginx.service", 80)
    assert (relay.protocol, relay.port, relay.program) == ("udp", 3478, "")


@pytest.mark.parametrize(
    "marker",
    [
        "",
        "[]",
        "{}",
        "no JSON",
        '{"server_name": "x.test", "vault": 1}',
        '{"server_name": "x.test", "vault": "1", "database_port": "x"}',
        "[" * 100_000,
    ],
)
def test_damaged_marker_is_noticed(marker: str) -> None:
    state = Machine().answer([f"deployment {marker}", "secret turn_shared_secret 0f", "server_name x.test"])
    assert state.deployment is None and state.marker_damaged and state.database_port == 5432
    assert state.secrets == (("turn_shared_secret", "0f"),) and state.server_name == "x.test"


def test_machine_state_of_this_computer() -> None:
    """The command must work in a POSIX shell."""
    answer = subprocess.run(
        ["sh", "-c", question_command(Machine().question(["localhost", "none.invalid"]))],
        capture_output=True,
        text=True,
        check=True,
    )
    state = Machine().process(answer.stdout.splitlines())
    assert isinstance(state, MachineState) and state.user and state.memory > 0 and state.disk > 0
    assert "127.0.0.1" in state.names["localhost"] and state.names["none.invalid"] == ()
    assert not state.marker_damaged and state.secrets == ()


def test_what_must_not_change_is_found_on_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.write_text("x")
    entries = [
        VaultEntry(name, "hex", "", keep, at=at)
        for name, keep, at in (("a", "x", str(used)), ("b", "x", str(tmp_path / "none")), ("c", "", str(used)))
    ]
    monkeypatch.setattr(machine, "ROLES", {"mas": replace(MAS, secrets=tuple(entries))})
    # Root's part: here without becoming root.
    question = Machine().question().replace('sudo="sudo -n"', "sudo=")
    answer = subprocess.run(["sh", "-c", question_command(question)], capture_output=True, text=True, check=True)
    assert Machine().process(answer.stdout.splitlines()).kept == {"a"}


def test_a_secret_that_must_not_change_is_not_made_anew(tmp_path: Path) -> None:
    """The vault is a copy from before it was made."""
    vault = Vault.open(tmp_path / "prod.vault")
    for name in ("mas_signing_key", "sydent_signing_key"):
        vault.get(name)
    vault.set("sliding_sync_secret", "0" * 64)
    vault.save()
    vault.get("backup_encryption_key")
    known: Any = SimpleNamespace(
        vault=vault,
        vault_path="prod.vault",
        machine=MachineState(kept=frozenset({"mas_signing_key", "sliding_sync_secret", "backup_encryption_key"})),
    )
    assert preflight._lost_secrets(known) == [
        "the backup has used backup_encryption_key, and prod.vault does not have it: restore that file from a backup. "
        "With a new one: backups that were made with it cannot be read"
    ]
    known.machine = MachineState()
    assert preflight._lost_secrets(known) == []


def test_only_missing_packages_are_installed_and_their_units_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, packages, FakeHost({"curl"}))
    [command] = commands(packages.installed, packages=["caddy", "curl"], masked=["caddy.service"])
    assert "--no-install-recommends" in command
    assert "\nmasked=caddy.service\ninstall_packages caddy" in command and " curl" not in command
    at(monkeypatch, packages, FakeHost({"caddy", "curl"}))
    assert commands(packages.installed, packages=["caddy", "curl"], masked=["caddy.service"]) == []


# --- proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "apt", "wanted"),
    [
        ({}, "", {}),
        ({"https_proxy": "http://a:1"}, "", {"https_proxy": "http://a:1"}),
        ({"http_proxy": "http://a:1"}, "", {"http_proxy": "http://a:1", "https_proxy": "http://a:1"}),
        ({"ALL_PROXY": "http://a:1"}, "", {"https_proxy": "http://a:1"}),
        ({}, 'Acquire::http::Proxy "http://b:2";', {"http_proxy": "http://b:2", "https_proxy": "http://b:2"}),
        ({"https_proxy": "http://a:1"}, 'Acquire::http::Proxy "http://b:2";', {"https_proxy": "http://a:1"}),
        (
            {},
            'Acquire::http::Proxy "http://b:2"; Acquire::https::Proxy "DIRECT";',
            {"http_proxy": "http://b:2"},
        ),
        ({}, 'Acquire::http::Proxy "DIRECT";', {}),
        ({"https_proxy": "http://u:it's$x@a:1"}, "", {"https_proxy": "http://u:it's$x@a:1"}),
    ],
)
def test_proxy_of_the_machine_is_used(
    tmp_path: Path, environment: dict[str, str], apt: str, wanted: dict[str, str]
) -> None:
    configuration, saved = tmp_path / "apt.conf", tmp_path / "proxy"
    configuration.write_text(apt)
    program = f"set -eu\n{shell_file('proxy')}use_proxy; save_proxy {saved}"
    given = {"PATH": os.environ["PATH"], "APT_CONFIG": str(configuration), "Dir": "/nowhere", **environment}
    subprocess.run(["sh", "-c", program], env=given, check=True)
    assert saved.stat().st_mode & 0o077 == 0
    shown = subprocess.run(["env", "-i", "sh", "-c", f". {saved}; env"], capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in shown.stdout.splitlines())
    assert {name: found[name] for name in ("http_proxy", "https_proxy") if name in found} == wanted
    assert found["no_proxy"].startswith("localhost,127.0.0.1,::1")


def test_commands_have_the_same_environment_with_a_proxy_which_is_no_argument() -> None:
    noise = {"LANG": "de_DE.UTF-8", "POSIXLY_CORRECT": "1", "name": "x", "BASH_FUNC_stat%%": "() { echo gotcha; }"}
    command = str(script("env"))
    for proxies in ({}, {"https_proxy": "http://u:p@a:1", "no_proxy": "x.test"}):
        shown = subprocess.run(
            ["sh", "-c", command],
            env={"HOME": "/root", "PATH": os.environ["PATH"], **noise, **proxies},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        names = {line.partition("=")[0] for line in shown.splitlines()} - {"PWD", "_", "SHLVL", "OLDPWD"}
        assert names == {"HOME", "PATH", "LC_ALL", "TZ"} | (
            {"https_proxy", "no_proxy", "NO_PROXY"} if proxies else set()
        )
    assert "no_proxy=localhost,127.0.0.1,::1,x.test\n" in shown
    # An argument of a program, which everybody can read in the list of processes.
    assert "https_proxy=" not in command.replace(" no_proxy=", "")


def test_the_note_of_a_run_is_left_after_git_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    host, program = MagicMock(), MagicMock(ended=False)
    # Without a return value: its thread ends.
    program.send.side_effect = sent.append
    monkeypatch.setattr(lock, "_lock_and_look", lambda _: lock.Lock("locked", program=program))
    monkeypatch.setattr(lock, "wrong_database", lambda _: [])
    locks = lock.Locks()
    locks.take([host])
    assert locks._version is not None
    locks._version.join()
    locks.finish([host])
    assert [line for line in sent if '"version"' in line], sent


# --- users ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "restored"),
    [
        ([], False),  # a new machine
        (["home:/var/lib/x:990:990:x"], True),
        (["made:x"], True),
        (["passwd:x:x:990:65534:X:/:/bin/sh"], True),  # of another package, in the group nogroup
        (["passwd:x:x:990:990:X:/:/bin/sh", "home:/var/lib/x:990:990:UNKNOWN"], True),
        (["passwd:x:x:990:990:X:/:/bin/sh", "group:x:x:990:", "home:/var/lib/x:990:990:x"], False),
        (["passwd:x:x:990:990:X:/:/bin/sh", "group:x:x:991:", "home:/var/lib/x:990:990:UNKNOWN"], True),
        (["passwd:x:x:990:990:X:/:/bin/sh", "group:x:x:990:", "home:/var/lib/x:7:990:x"], True),
        (["passwd:x:x:990:990:X:/:/bin/sh", "group:x:x:990:", "home:/var/lib/x:990:7:UNKNOWN"], True),
        (["passwd:x:x:990:990:X:/:/bin/sh", "group:x:x:990:", "home:/var/lib/x:990:7:backup"], False),
        (["passwd:x:x:990:990:X:/:/bin/sh", "group:x:x:990:", "home:/var/lib/x:0:0:root"], False),
        (["passwd:x:x:990:990:X:/:/bin/sh", "group:x:x:990:", "group:also:x:5:y", "home:/var/lib/x:990:990:x"], True),
    ],
)
def test_which_users_are_restored(monkeypatch: pytest.MonkeyPatch, lines: list[str], restored: bool) -> None:
    at(monkeypatch, users, FakeHost(users.Accounts().answer(lines)))
    account = Account("x", "X", home="/var/lib/x", unit="x.service", group="also")
    assert bool(commands(users.restored, accounts=[account], groups={})) is restored


def test_a_group_that_was_removed_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for lines, restored in (([], True), (["group:shared:x:990:"], False)):
        at(monkeypatch, users, FakeHost(users.Accounts().answer(lines)))
        assert bool(commands(users.restored, accounts=[], groups={"shared": ["x.service"]})) is restored


# --- virtualenvs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "intact"),
    [
        ("true", True),
        ("rm module.py", False),
        ("truncate -s 1 module.py", False),
        ("rm -r package", False),
        ("ln -sfn /nowhere python", False),
        ("chmod 000 module.py", False),
        ("rm .complete", False),
        ("mkdir package/__pycache__ && touch package/__pycache__/x.pyc", True),
        ("touch package", True),
    ],
)
def test_damage_of_a_virtualenv_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str, intact: bool
) -> None:
    monkeypatch.setattr(Virtualenv, "home", str(tmp_path))
    virtualenv = Virtualenv("x", "sydent", "3.13", imports="x")
    directory = tmp_path / virtualenv.key
    (directory / "package").mkdir(parents=True)
    for name in ("module.py", "package/a.py"):
        (directory / name).write_text("x = 1\n")
    (directory / "python").symlink_to("/usr/bin/python3")
    complete = f'{virtualenv.shell}complete=$(listing); echo "$complete" >.complete'
    subprocess.run(["sh", "-c", complete], cwd=directory, check=True)

    subprocess.run(["sh", "-c", damage], cwd=directory, check=True)

    fact = Intact()
    asked = subprocess.run(
        ["sh", "-c", fact.question(virtualenv)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert fact.answer(asked) is intact
