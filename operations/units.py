"""systemd units.

Whether a unit must be restarted is read from the machine, and does not depend on what this run changes: a unit is restarted if
it was started before a file that it reads was written. So if a run is interrupted between a file and the restart, the next
run restarts the unit.
"""

import datetime
import re
import shlex
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyinfra.api import StringCommand
from pyinfra.context import host

from compat import add_final_line
from operations import virtualenvs
from operations.look import ask, operation
from operations.programs import Program, read_back
from operations.shell import Fact, quoted, script, shell_file
from operations.virtualenvs import Virtualenv

DEFINITIONS = "/etc/systemd/system/"
# Machines and units whose first start goes on in this run.
_going_on: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class UnitState:
    """A unit as systemd sees it. Times are seconds since the epoch; 0.0 for never."""

    load: str = "not-found"
    active: str = "inactive"
    enabled: str = ""
    definition_changed: bool = False
    started: float = 0.0
    changed: float = 0.0
    # When each file that it reads was last written or renamed into place; absent ones are left out.
    written: tuple[tuple[str, float], ...] = ()
    ready: bool = False
    # What the administrator changed since it was started, and why it would not start again with that.
    own_changed: tuple[str, ...] = ()
    refused: str = ""
    # The version of its program to which there is a way back, because the one in use has not come up yet.
    back: str = ""

    def newer_than(self, moment: float, paths: Sequence[str]) -> bool:
        """Whether one of the files was written after that moment."""
        return any(when > moment for path, when in self.written if path in paths)


class Unit(Fact[UnitState]):
    """One unit, the files it reads (its own definition included) and whether it answers."""

    functions = "unit"

    def question(
        self,
        unit: str,
        reads: Sequence[str],
        ready: str | None,
        slow_to_start: bool = False,
        own: Sequence[str] = (),
        own_check: str = "",
        kept: str = "",
    ) -> str:
        # An earlier run may not have waited until systemd took the unit for started.
        patience = "25" if slow_to_start else "0"
        asked = f"about {quoted(unit, patience, ready or 'true', quoted(*own), own_check, *reads)}"
        return f'{asked}\nback=; {read_back(quoted(kept))}; echo "Back=$back"' if kept else asked

    @staticmethod
    def default() -> UnitState:
        return UnitState()

    def answer(self, lines: list[str]) -> UnitState:
        values: dict[str, str] = {}
        written: list[tuple[str, float]] = []
        own_changed: list[str] = []
        for line in lines:
            key, _, value = line.partition("=")
            if key == "Written":
                when, _, path = value.partition(" ")
                written.append((path, float(when)))
            elif key == "Changed":
                own_changed.append(value)
            else:
                values[key] = value
        return UnitState(
            load=values.get("LoadState", "not-found"),
            active=values.get("ActiveState", "inactive"),
            enabled=values.get("UnitFileState", ""),
            definition_changed=values.get("NeedDaemonReload") == "yes",
            # A process reads its files after it was started and before it reports that it is ready. Paths and timers have no
            # process.
            started=seconds_since_epoch(values.get("ExecMainStartTimestamp", ""))
            or seconds_since_epoch(values.get("ActiveEnterTimestamp", "")),
            changed=seconds_since_epoch(values.get("StateChangeTimestamp", "")),
            written=tuple(written),
            ready=values.get("Ready") == "yes",
            own_changed=tuple(own_changed),
            refused=values.get("Refused", ""),
            back=values.get("Back", ""),
        )


def seconds_since_epoch(timestamp: str) -> float:
    """systemd's `Mon 2026-11-23 22:44:41.123456 UTC` as seconds since the epoch; 0.0 for never."""
    if not timestamp or timestamp == "n/a":
        return 0.0
    _, date, time, _ = timestamp.split()
    moment = datetime.datetime.fromisoformat(f"{date} {time}").replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def unrecovered(lines: Iterable[str], recoveries: str) -> list[str]:
    """Lines of a log that report errors, without those about a name that a later line reports as recovered (roles.Unit)."""
    remaining: list[str] = []
    for line in lines:
        if recoveries and (recovered := re.search(recoveries, line)):
            # As a whole name, not as a part of a longer one.
            about = re.compile(rf"(?<![\w.-]){re.escape(recovered[1])}(?![\w.-])")
            remaining = [each for each in remaining if not about.search(each)]
        else:
            remaining.append(line)
    return remaining


@operation()
def running(
    unit: str,
    reads: Sequence[str] = (),
    rereads: Sequence[str] = (),
    prepare: str | None = None,
    check: str | None = None,
    ready: str | None = None,
    needs: str | None = None,
    patience: int = 60,
    enabled: bool = True,
    program: Program | None = None,
    slow_to_start: bool = False,
    own: Sequence[str] = (),
    own_check: str = "",
    first_start_goes_on: bool = False,
) -> Generator[StringCommand, None, None]:
    """The unit runs with the files that are on the machine, starts at boot, and answers.

    reads: files it reads only when it starts: it is restarted when one is newer. Its own definition is always one of them;
        drop-ins of ours have to be listed.
    rereads: files it reads again when it is reloaded: it is reloaded when one is newer.
    prepare: shell command that makes what the unit needs before it is started, if it is not there.
    check: shell command that must succeed before a restart or reload; while it fails the old process keeps running.
    ready: shell command that succeeds once the unit does its work; run in every deploy, so that a unit which runs but does
        not answer is restarted.
    needs: shell command that succeeds while what the unit depends on works, and otherwise prints what does not. While it
        fails, a unit that does not answer is not restarted: that would not help.
    patience: seconds to wait for `ready`.
    enabled: whether to enable it; False for units that their package enables in its own way.
    program: what it runs, if that is below /opt. If a new version does not come up, the one before is put back. A virtualenv is
        built again before the unit is started, if files of it were lost.
    slow_to_start: it works long before systemd takes it for started: a unit that did not run is waited for by `ready` only.
    own: files and directories of the administrator's, which it reads when it starts. It is not restarted for them.
    own_check: shell command that fails with the reason, as the last line on stderr, if the unit would not start again with them.
        Run only if they were changed since it was started; then the run ends with that line.
    first_start_goes_on: a start of a unit that systemd does not know yet is not waited for. `started` does that, later in the
        same run, with `check` only if it fails: there is no process that could keep running.
    """
    now: UnitState = ask(
        Unit,
        unit=unit,
        reads=[*reads, *rereads],
        ready=ready,
        slow_to_start=slow_to_start,
        own=own,
        own_check=own_check,
        kept=program.kept if program else "",
    )
    definition = [path for path, _ in now.written if path not in (*reads, *rereads)]
    stale = now.definition_changed or now.newer_than(now.started, [*reads, *definition])
    outdated = now.newer_than(now.changed, rereads)

    name = shlex.quote(unit)
    restarts = now.active != "active" or stale
    enables = enabled and now.enabled not in ("enabled", "enabled-runtime", "static", "alias")
    # It was never started since systemd knows it: systemd has read its definition just now, or will when it starts it.
    new = (
        now.load in ("loaded", "not-found") and now.active == "inactive" and not (now.changed or now.definition_changed)
    )
    if new and not any(_changes_another(path) for path in reads):
        read = [f"read_changed {quoted(unit, *map(_defined_by, filter(_is_definition, reads)))}"]
    else:
        read = [
            # A start from an interrupted run may still be going on. It is waited for: Synapse cannot recover from being killed
            # while it creates its tables for the first time.
            f"case $(systemctl is-active {name}) in activating) systemctl start {name} 2>/dev/null || true;; esac",
            # Debian 12's systemd (252) does not notice the first drop-in of a unit that is already loaded.
            *(["forget_definitions"] if now.definition_changed or now.load not in ("loaded", "not-found") else []),
            f"read_definitions {name}" if enables else "read_definitions",
            f"systemctl reset-failed --quiet {name} 2>/dev/null || true",
        ]
    goes_on = new and first_start_goes_on and not now.back
    (_going_on.add if goes_on else _going_on.discard)((host.name, unit))
    blocks = not (goes_on or (slow_to_start and now.active in ("inactive", "failed")))
    # Not --no-block for a restart: `ready` would be answered by the old process until it is stopped.
    start = [*read, f"systemctl {'restart' if blocks else 'start --no-block'} {name} || failed start"]
    steps: list[str] = []
    if now.refused and not restarts:
        add_final_line(
            f"{host.name}: {unit} runs, but would not start again: {now.refused} "
            f"(changed since it was started: {', '.join(now.own_changed)})"
        )
    if (now.load != "loaded" and not new) or now.definition_changed:
        # A mask of `packages.installed` that an interrupted run left behind.
        steps.append(f"systemctl unmask --runtime --quiet --no-reload {name} || true")
        if not restarts:
            steps.append("systemctl daemon-reload")
    if enables:
        # `start` follows. Without systemd, which would take all its units for changed until it reads them again.
        steps.append(f"systemctl enable --quiet {'--root=/ ' if restarts else ''}{name}")
    if restarts:
        steps += _prepare_step(unit, prepare)
        steps += start if goes_on else [*_check_step(unit, check), *start, "wait_ready"]
    elif outdated:
        steps += [*_check_step(unit, check), f"systemctl reload {name} || failed reload", "wait_ready"]
    elif ready and not now.ready:
        # It may be busy for a moment, so it gets some seconds. `patience` is for starts.
        steps += [
            f"(wait_ready {min(10, patience)}) 2>/dev/null || {{",
            *_needs_step(unit, needs),
            *start,
            "wait_ready; }",
        ]
    if not (steps or now.back):
        host.noop(f"{unit} runs with the files that are on the machine")
        return
    if program and isinstance(program.source, Virtualenv) and (restarts or (ready and not now.ready)):
        yield from virtualenvs.rebuilt_if_damaged(program.source)
    if program and now.back:
        steps = steps or ["wait_ready 10"]
        yield _tried(program, _functions(unit, ready, patience, slow_to_start, gives_up=True), steps, start[1:])
    else:
        yield script(*_functions(unit, ready, patience, slow_to_start), *steps)


@operation()
def started(unit: str, check: str, ready: str, patience: int = 60) -> Generator[StringCommand, None, None]:
    """The unit answers, if `running` has not waited for that. check, ready, patience: as for `running`.

    If its configuration is refused, it is stopped: systemd would start it again for ever.
    """
    if (host.name, unit) not in _going_on:
        return
    refused = f"{unit} does not start: its configuration is refused, see above"
    yield script(
        *_functions(unit, ready, patience, slow_to_start=False, gives_up=True),
        f"said=$( (wait_ready) 2>&1) || {{ {check} || {{",
        f"systemctl stop {shlex.quote(unit)}; echo {quoted(refused)} >&2; exit 1; }}",
        "printf '%s\\n' \"$said\" >&2; exit 1; }",
    )


def _tried(program: Program, functions: Sequence[str], steps: Sequence[str], start: Sequence[str]) -> StringCommand:
    """The steps for a version that has not come up yet. What follows if it does not is done on the machine alone."""
    trial = [
        "umask 022",
        "export LC_ALL=C.UTF-8 TZ=UTC",
        "cd /",
        program.shell,
        *functions,
        *("attempt() {", *steps, "}"),
        *("resume() {", *start, "wait_ready", "}"),
        "trial",
    ]
    return script(program.shell, "try_new", stdin="\n".join(trial) + "\n")


def _is_definition(path: str) -> bool:
    return path.startswith(DEFINITIONS)


def _defined_by(path: str) -> str:
    """The unit that a definition is of."""
    return PurePosixPath(path).name


def _changes_another(path: str) -> bool:
    """Whether it is a drop-in."""
    return _is_definition(path) and PurePosixPath(path).parent.name.endswith(".d")


def _prepare_step(unit: str, prepare: str | None) -> list[str]:
    if prepare is None:
        return []
    message = f"{unit} was not touched: what it needs cannot be made, see above"
    return [f"{prepare} || {{ echo {quoted(message)} >&2; exit 1; }}"]


def _check_step(unit: str, check: str | None) -> list[str]:
    if check is None:
        return []
    return [
        f"{check} || {{ echo {quoted(f'{unit} was not touched: its new configuration is refused, see above')} >&2; exit 1; }}"
    ]


def _needs_step(unit: str, needs: str | None) -> list[str]:
    if needs is None:
        return []
    message = f"{unit} does not answer, and was not restarted: what it depends on does not work, see above"
    return [f"{needs} || {{ echo {quoted(message)} >&2; exit 1; }}"]


def _functions(unit: str, ready: str | None, patience: int, slow_to_start: bool, gives_up: bool = False) -> list[str]:
    """Shell functions that wait for the unit, and that print why it does not come up, with the end of its log.

    gives_up: whether it is enough that it ends twice: systemd would start it again however often it does.
    """
    name = shlex.quote(unit)
    starting = f"[ $(systemctl is-active {name}) = activating ] || " if slow_to_start else ""
    # It depends on no other unit: when its first attempt fails, further ones will fail as well.
    restarting = f" || [ $(systemctl show {name} -p SubState --value) = auto-restart ]" if slow_to_start else ""
    if gives_up:
        restarting = f" || [ $(systemctl show {name} -p NRestarts --value) -gt 1 ]"
    return [
        shell_file("definitions"),
        "failed() {",
        f'  echo {quoted(unit)} "failed to $1; the end of its log:" >&2',
        f"  journalctl -u {name} -n 20 --no-pager -o cat >&2 || true",
        "  exit 1",
        "}",
        "wait_ready() {",
        f"  end=$(( $(date +%s) + ${{1:-{patience}}} ))",
        f"  until sh -c {shlex.quote(ready or 'true')} >/dev/null 2>&1; do",
        f"    if systemctl is-failed --quiet {name}{restarting}; then failed 'keep running'; fi",
        f"    if [ $(date +%s) -ge $end ]; then failed 'answer within {patience} s'; fi",
        "    sleep 0.1",
        "  done",
        # For units without `ready`: one that ends at once must be noticed, too.
        f"  systemctl is-active --quiet {name} || {starting}failed 'keep running'",
        "}",
    ]
