"""A machine's services as the tests see them, and the tests that are the same for every service."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
from testinfra.host import Host

from operations.filters import PORTS, Filter
from operations.units import seconds_since_epoch, unrecovered
from operations.virtualenvs import locked
from roles import Port, Role, Unit
from settings import Settings
from settings.deployment import LocalPort, PublicPort

DEPLOY = "run the deploy again"
_PROPERTIES = (
    "ActiveState,SubState,UnitFileState,NeedDaemonReload,NRestarts,MainPID,InvocationID,ControlGroup,"
    "ExecMainStartTimestamp,StateChangeTimestamp"
)
DAY = 24 * 60 * 60


def ask(host: Host, command: str, *words: str) -> str:
    """What the command prints; it must succeed. `%s` in the command is a word, quoted."""
    done = host.run(command, *words)
    assert done.rc == 0, f"`{command % words if words else command}` failed: {(done.stderr or done.stdout).strip()}"
    return str(done.stdout)


@dataclass(frozen=True)
class Service:
    """A systemd unit.

    user, exposure, reads, rereads, errors, recoveries, enabled, health, own, check: as in `roles.Unit`. secrets: files and
    directories that other users must not read. depends_on: units whose restart causes errors in it. ports: those that it has to
    listen on. local_ports, public_ports: those of them on which nobody else may listen.
    """

    host: Host
    unit: str
    user: str
    exposure: float
    reads: Sequence[str] = ()
    rereads: Sequence[str] = ()
    secrets: Sequence[str] = ()
    errors: str = ""
    recoveries: str = ""
    depends_on: Sequence[str] = ()
    enabled: str = field(default="enabled")
    health: str = ""
    own: Sequence[str] = ()
    check: str = ""
    ports: Sequence[Port] = ()
    local_ports: Sequence[LocalPort] = ()
    public_ports: Sequence[PublicPort] = ()

    @classmethod
    def of(cls, host: Host, settings: Settings, role: Role, unit: Unit) -> "Service":
        """The service of a role's unit, as its record says."""
        name = settings.written(unit.name)
        private = list(map(settings.written, unit.private))
        if role.own_certificate:
            private.append(settings.issuer(for_relay=True).paths(settings.domain(role))[1])
        return cls(
            host,
            name,
            user=unit.user,
            exposure=unit.exposure,
            reads=unit.reads,
            rereads=unit.rereads,
            secrets=private,
            errors=unit.errors,
            recoveries=unit.recoveries,
            depends_on=settings.depends_on(role),
            enabled=unit.enabled,
            health=settings.written(unit.health),
            own=list(map(settings.written, unit.own)),
            check=settings.written(unit.check),
            ports=[
                port
                for each in settings.played
                for port in settings.listens(each)
                if settings.written(port.unit) == name
            ],
            local_ports=[port for port in settings.local_ports if port.owner == unit.user],
            public_ports=[port for port in settings.public_ports if port.owner == unit.user],
        )

    @cached_property
    def properties(self) -> dict[str, str]:
        return _properties(self.host, self.unit)

    @property
    def pid(self) -> str:
        pid = self.properties["MainPID"]
        if pid == "0":
            # One test fails for it, not all of them.
            pytest.skip(f"{self.unit} does not run, see TestService.test_runs")
        return pid

    def own_files(self, paths: Sequence[str]) -> list[str]:
        """Those of the paths that are in directories of the administrator's."""
        return [path for path in paths if any(path.startswith(f"{each}/") for each in self.own)]

    @property
    def started(self) -> float:
        """When it was started, in seconds since the epoch."""
        return seconds_since_epoch(self.properties["ExecMainStartTimestamp"])

    @property
    def reloaded(self) -> float:
        """When it was started or reloaded last, in seconds since the epoch."""
        return seconds_since_epoch(self.properties["StateChangeTimestamp"])

    def sockets(self) -> set[str]:
        """Where its processes listen, such as `tcp 127.0.0.1:8008`; `*` and `0.0.0.0` are all addresses.

        From ss: testinfra's own socket module takes a socket on all addresses for one on the address that it was asked for.
        """
        assert self.pid
        processes = ask(self.host, "cat %s", f"/sys/fs/cgroup{self.properties['ControlGroup']}/cgroup.procs").split()
        listening = set()
        for line in ask(self.host, "ss -Hlntup").splitlines():
            words = line.split()
            if set(re.findall(r"pid=(\d+)", line)) & set(processes):
                listening.add(f"{words[0]} {words[4]}")
        return listening

    def tcp(self) -> set[str]:
        """Where it listens for TCP. UDP is left out: sockets of DNS resolvers look as if they listened."""
        return {socket.removeprefix("tcp ") for socket in self.sockets() if socket.startswith("tcp ")}

    def log(self, since: float, until: float | None = None, pattern: str = "") -> list[str]:
        """Lines that it wrote between two times, in seconds since the epoch, and not before its last start."""
        command = "journalctl --no-pager -q -o cat _SYSTEMD_INVOCATION_ID=%s --since=%s"
        words = [self.properties["InvocationID"], f"@{since:.6f}"]
        if until is not None:
            command, words = f"{command} --until=%s", [*words, f"@{until:.6f}"]
        if pattern:
            command, words = f"{command} --grep=%s --case-sensitive=true", [*words, pattern]
        done = self.host.run(command, *words)
        # The exit status is the same if no line matches; without this, an unreadable log would count as one without errors.
        assert "Failed to " not in done.stderr, f"the log of {self.unit} cannot be read: {done.stderr.strip()}"
        return list(map(str, done.stdout.splitlines()))

    def log_end(self, lines: int = 20) -> str:
        """The end of its log, with systemd's messages about it."""
        return str(self.host.run(f"journalctl --no-pager -q -n {lines} -o short-iso -u %s", self.unit).stdout)


def table_of(host: Host, filter: Filter) -> str:
    """A packet filter as the kernel has it; asserts that it is the one that was loaded, and that it is loaded at boot."""
    found = host.run(filter.works)
    assert found.rc == 0, (
        f"the packet filter {filter.table} is missing or was changed (`nft flush ruleset`?): {DEPLOY}, or "
        f"`systemctl restart {filter.unit}`"
    )
    enabled = host.run("systemctl is-enabled %s", filter.unit).stdout.strip()
    assert enabled == "enabled", (
        f"{filter.unit} is {enabled or 'not there'}, so the next boot will not load it: {DEPLOY}"
    )
    return ask(host, "nft list table inet %s", filter.table)


def _properties(host: Host, unit: str) -> dict[str, str]:
    asked = ask(host, f"systemctl show --timestamp=us+utc -p {_PROPERTIES} %s", unit)
    return dict(line.split("=", 1) for line in asked.splitlines())


def _parsed(socket: str) -> tuple[str, str, int]:
    """Protocol, address and port of one of `Service.sockets`."""
    protocol, _, where = socket.partition(" ")
    address, _, port = where.rpartition(":")
    return protocol, address.partition("%")[0].strip("[]"), int(port)


def _allowed(listener: tuple[str, str, int], port: Port) -> bool:
    protocol, address, number = listener
    local = address in ("127.0.0.1", "::1")
    return protocol == port.protocol and number in port.numbers and (local or port.reach != "machine")


class ServiceTests:
    """The tests of every service. Each role's module has a subclass, which runs for each unit of the role."""

    def test_runs(self, service: Service) -> None:
        state = service.properties
        assert (state["ActiveState"], state["SubState"]) == ("active", "running"), (
            f"{service.unit} is {state['ActiveState']} ({state['SubState']}): see journalctl -u {service.unit}, "
            f"then {DEPLOY} or `systemctl restart {service.unit}`"
        )

    def test_works(self, service: Service) -> None:
        assert service.pid
        done = service.host.run("sh -c %s", service.health)
        assert done.rc == 0, (
            f"{service.unit} runs, but does not do its work: see journalctl -u {service.unit}, then {DEPLOY}"
        )

    def test_starts_at_boot(self, service: Service) -> None:
        found = service.properties["UnitFileState"]
        assert found == service.enabled, (
            f"{service.unit} is {found or 'not there'}, so the next boot will not start it: {DEPLOY}"
        )

    def test_does_not_crash(self, service: Service) -> None:
        restarts, age = int(service.properties["NRestarts"]), time.time() - service.started
        assert not restarts or age > DAY, (
            f"{service.unit} has crashed and was restarted {restarts} times, last {age / 60:.0f} minutes ago: "
            f"see journalctl -u {service.unit}"
        )

    def test_runs_as_its_user(self, service: Service) -> None:
        users = ask(service.host, "stat -c %%U %s", f"/proc/{service.pid}").split()
        assert users == [service.user], f"{service.unit} runs as {users[0]} instead of {service.user}: {DEPLOY}"

    def test_runs_the_installed_program(self, service: Service) -> None:
        program = ask(service.host, "readlink %s", f"/proc/{service.pid}/exe").strip()
        assert not program.endswith(" (deleted)"), (
            f"{service.unit} still runs a program that was replaced: systemctl restart {service.unit}"
        )

    def test_runs_what_is_configured(self, service: Service) -> None:
        assert service.pid
        assert service.properties["NeedDaemonReload"] == "no", (
            f"the definition of {service.unit} was changed since it started: {DEPLOY}"
        )
        for paths, since, verb in (
            (service.reads, service.started, "restart"),
            (service.rereads, service.reloaded, "reload"),
        ):
            if paths:
                command = f"find {' '.join('%s' for _ in paths)} -ignore_readdir_race -type f -newermt %s"
                newer = ask(service.host, command, *paths, f"@{since:.6f}").split()
                own = service.own_files(newer)
                ours = [path for path in newer if path not in own]
                advice = f"changed after {service.unit} read it"
                restart = f"`systemctl {verb} {service.unit}`"
                assert not ours, f"{', '.join(ours)} {advice}: {DEPLOY} or {restart}"
                # A deploy leaves the administrator's files alone. If it would not start again with them, the next test says why.
                assert not own or service.host.run(service.check).rc, f"{', '.join(own)} {advice}: {restart}"

    def test_would_start_again(self, service: Service) -> None:
        if not service.own:
            return
        assert service.pid
        command = (
            f"find {' '.join('%s' for _ in service.own)} -ignore_readdir_race ! -name 'matrix-metal.*' -newerct %s"
        )
        changed = ask(service.host, command, *service.own, f"@{service.started:.6f}").split()
        if changed:
            done = service.host.run(service.check)
            why = (done.stderr.strip().splitlines() or ["its check failed"])[-1].strip()
            assert done.rc == 0, (
                f"{service.unit} runs, but would not start again: {why} "
                f"(changed since it was started: {', '.join(changed)})"
            )

    def test_keeps_its_secrets(self, service: Service) -> None:
        if service.secrets:
            command = (
                f"find {' '.join('%s' for _ in service.secrets)} -ignore_readdir_race ! -type l ! -type s -perm /o=rwx"
            )
            exposed = ask(service.host, command, *service.secrets).split()
            own = service.own_files(exposed)
            ours = [path for path in exposed if path not in own]
            assert not ours, f"every user of the machine may read or change {', '.join(ours)}: {DEPLOY}"
            # The administrator's are left alone by a deploy; that their directory is closed is enough.
            open_to = [path for path in own if service.host.run("runuser -u nobody -- test -r %s", path).rc == 0]
            assert not open_to, f"every user of the machine may read {', '.join(open_to)}: chmod o= {' '.join(open_to)}"

    def test_is_confined(self, service: Service) -> None:
        output = ask(service.host, "systemd-analyze security --no-pager %s", service.unit)
        found = re.search(r"exposure level for .*: ([0-9.]+)", output)
        assert found and float(found[1]) <= service.exposure, (
            f"{service.unit} may do more than it needs, exposure {found[1] if found else '?'} instead of at most "
            f"{service.exposure}: {DEPLOY}; `systemctl cat {service.unit}` shows drop-ins that are not ours"
        )

    def test_listens_where_it_should(self, service: Service) -> None:
        """And nowhere else, and not on public addresses if only this machine should reach it."""
        found = {socket: _parsed(socket) for socket in service.sockets()}
        if not any(port.protocol == "udp" for port in service.ports):
            # UDP sockets of DNS resolvers look as if they listened.
            found = {socket: listener for socket, listener in found.items() if listener[0] == "tcp"}
        others = [
            socket for socket, listener in found.items() if not any(_allowed(listener, port) for port in service.ports)
        ]
        assert not others, f"{service.unit} listens on {', '.join(sorted(others))}, where it should not: {DEPLOY}"
        missing = [
            port
            for port in service.ports
            if port.last is None and not any(_allowed(listener, port) for listener in found.values())
        ]
        assert not missing, (
            f"{service.unit} does not listen on {', '.join(f'{each.protocol} {each.number}' for each in missing)}: "
            f"{DEPLOY}; see journalctl -u {service.unit}"
        )

    def test_nobody_else_can_take_its_ports(self, service: Service) -> None:
        """A local user could listen there while the service restarts."""
        if not service.local_ports and not service.public_ports:
            return
        shown, uid = table_of(service.host, PORTS), ask(service.host, "id -u %s", service.user).strip()
        for port in service.local_ports:
            answered = rf"tcp sport {port.number} meta skuid {uid} return\s+tcp sport {port.number} counter .*drop"
            connected = rf"tcp dport {port.number} meta skuid .* return\s+tcp dport {port.number} counter .*reject"
            assert re.search(answered, shown), (
                f"any local user can listen on port {port.number} while {service.unit} restarts, and gets its requests: {DEPLOY}"
            )
            assert port.callers is None or re.search(connected, shown), (
                f"any local user can connect to {service.unit} on port {port.number}: {DEPLOY}"
            )
        for each in service.public_ports:
            dropped = rf"{each.protocol} sport {each.number} meta skuid != {uid} counter .*drop"
            assert re.search(dropped, shown), (
                f"any local user can answer from {each.protocol} {each.number} while {service.unit} restarts: {DEPLOY}"
            )

    def test_logs_no_errors(self, service: Service) -> None:
        # Only recent errors count, and not those from a restart of a unit that it depends on.
        ignored_until = [time.time() - 15 * 60]
        for unit in service.depends_on:
            started = _properties(service.host, unit)["ExecMainStartTimestamp"]
            ignored_until.append(seconds_since_epoch(started) + 5 * 60)
        if not service.errors or time.time() < max(ignored_until):
            return
        pattern = "|".join(filter(None, (service.errors, service.recoveries)))
        lines = unrecovered(
            service.log(since=max(service.started, *ignored_until), pattern=pattern), service.recoveries
        )
        assert not lines, (
            f"{service.unit} has logged {len(lines)} error{'s' if len(lines) > 1 else ''} in the last 15 minutes, such as "
            f"{lines[-1]!r}: see journalctl -u {service.unit}"
        )


def program_in_use(service: Service, program: str) -> str:
    """Name of the directory below /opt/<program> that `current` links to; asserts that the process runs from it.

    Not from its command line, which has `current`, whatever that was when the process started.
    """
    current = ask(service.host, "readlink %s", f"/opt/{program}/current").strip()
    mapped = ask(service.host, "cat %s", f"/proc/{service.pid}/maps")
    used = set(re.findall(rf"/opt/{re.escape(program)}/([^/\s]+)/", mapped))
    assert used <= {current}, (
        f"{service.unit} still runs from {', '.join(sorted(used - {current}))}, not from the installed {current}: "
        f"systemctl restart {service.unit}"
    )
    if not used:
        # A script is not among the mapped files: instead the process must have been started after the link was changed.
        switched = float(ask(service.host, "stat -c %%.9Z %s", f"/opt/{program}/current"))
        assert service.started >= switched, (
            f"{service.unit} is older than the installed {current}: systemctl restart {service.unit}"
        )
    return current


def locked_version(lock: str, distribution: str) -> str:
    """The version that requirements/<lock>.txt installs."""
    return locked(lock)[distribution]


@dataclass(frozen=True)
class Answer:
    """status: 0 if there was no answer. headers: names in lower case."""

    url: str
    status: int
    headers: dict[str, str]
    body: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.url} answers {self.status or self.reason}{f': {self.body[:200]}' if self.body else ''}"

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise AssertionError(f"{self}, which is not JSON") from None


def get(host: Host, url: str, method: str = "GET", origin: str = "", unix_socket: str = "") -> Answer:
    """A request from the machine itself; public names are resolved to the machine, so that DNS and routers do not matter.

    unix_socket: connect to this one instead.

    The certificate is not verified here, so that a wrong one fails one test and not all of them.
    """
    command, words = _curl(url.split("/")[2])
    if unix_socket:
        command, words = f"{command} --unix-socket %s", [*words, unix_socket]
    done = host.run(f"{command} -i -X %s -H %s %s", *words, method, f"Origin: {origin}" if origin else "Origin:", url)
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    first, *lines = head.splitlines() or [""]
    if done.rc or not first.startswith("HTTP/"):
        return Answer(url, 0, {}, "", reason=done.stderr.strip() or f"curl failed with {done.rc}")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return Answer(url, int(first.split()[1]), headers, body)


def statuses(host: Host, name: str, paths: Sequence[str]) -> dict[str, int]:
    """The same for several paths of a name in one command: path -> status, 0 if there was no answer."""
    command, words = _curl(name)
    # As written: curl would resolve the dots of /a/../b by itself.
    command += f" --path-as-is -w '%%{{http_code}}\\n'{' -o /dev/null %s' * len(paths)}"
    done = host.run(command, *words, *(f"https://{name}{path}" for path in paths))
    return dict(zip(paths, map(int, done.stdout.split()), strict=True))


def _curl(name: str) -> tuple[str, list[str]]:
    here = [f"{name}:{port}:127.0.0.1" for port in (80, 443)] if ":" not in name else []
    # Longer than Caddy waits for a backend (10 s), so that its 502 is seen.
    return f"curl -sSk --noproxy '*' --max-time 20{' --resolve %s' * len(here)}", here
