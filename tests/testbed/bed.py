"""The testbed of one checkout, and its hosts."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import disk
from .container import Container, groups, remove_group
from .network import CONTROLLER_NAME, NUMBERS, Network
from .roots import RELEASES, ensure_root, registry_settings, remove_unused
from .tools import TestbedError, delete, ensure_tools, last_line, require_root, run, say

CHECKOUT = Path(__file__).resolve().parents[2]

HOST_NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
DOMAIN = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

# Duplicate address detection would delay the first IPv6 packet by a second; the testbed assigns all addresses, so none is double.
CABLE = """\
[Match]
Name=host0

[Link]
MACAddress={link_address}
MTUBytes={mtu}

[Network]
Address={address}/24
Address={address6}/64
Gateway={gateway}
ConfigureWithoutCarrier=yes
IPv6AcceptRA=no
IPv6DuplicateAddressDetection=0
"""

# Only for speed: a deployment has systemd read its units two dozen times, and each time it starts all of these. They look for
# encrypted disks, partitions, a TPM, a saved memory, an /etc/rc.local and an update to make at boot, which no host has.
IDLE_GENERATORS = (
    "cryptsetup",
    "gpt-auto",
    "hibernate-resume",
    "integritysetup",
    "rc-local",
    "system-update",
    "tpm2",
    "veritysetup",
)

SSH = """\
Host {name} {domain} {address}
    HostName {address}
    User root
    IdentityFile "{key}"
    IdentitiesOnly yes
    UserKnownHostsFile "{known_hosts}"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    ControlMaster auto
    ControlPath {run}/%C
    ControlPersist 60
    ConnectTimeout 5
    ServerAliveInterval 5
    ServerAliveCountMax 2
    LogLevel ERROR
"""


class CommandFailed(TestbedError):
    """A command on a host failed; `result` has its exit status and all it printed."""

    def __init__(self, host: str, command: str, result: subprocess.CompletedProcess[str]) -> None:
        """Keep the result; the message is its last line."""
        self.result = result
        reason = last_line(result.stderr, result.stdout)
        super().__init__(f"{host}: {command!r} exited {result.returncode}: {reason}")


def first_number(name: str) -> int:
    """The number that a host of this name gets, if it is free."""
    return NUMBERS[int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % len(NUMBERS)]


@dataclass(frozen=True)
class _Record:
    """What is stored about a host."""

    name: str
    release: str
    root: str
    number: int
    names: tuple[str, ...]
    layers: tuple[str, ...] = ()


class Testbed:
    """The throw-away hosts of one checkout. Several processes may use it at once; hosts outlive them all.

    `checkout` decides the names and addresses; `directory` has the disks (default: `.cache/testbed` in the checkout,
    or $TESTBED_DIRECTORY).
    """

    __test__ = False

    def __init__(self, checkout: Path = CHECKOUT, directory: Path | None = None) -> None:
        """Nothing is started or changed."""
        chosen = directory or Path(os.environ.get("TESTBED_DIRECTORY") or checkout / ".cache/testbed")
        self.directory = chosen.resolve()
        self.bridge = f"mm{hashlib.sha256(str(checkout.resolve()).encode()).hexdigest()[:8]}"
        self.run_directory = Path("/run") / self.bridge
        self.network = Network(self.bridge, self.run_directory, self.directory / "network.json")

    @property
    def ssh_key(self) -> Path:
        """The private key that opens every host, as root and as admin."""
        return self.directory / "id_ed25519"

    @property
    def ssh_config(self) -> Path:
        """An OpenSSH configuration for all hosts."""
        return self.directory / "ssh_config"

    @property
    def bridge_address(self) -> str:
        """The controller's IPv4 address as the hosts see it. Servers for them to reach may listen here."""
        return self.network.address

    @property
    def bridge_address6(self) -> str:
        """The controller's IPv6 address as the hosts see it."""
        return self.network.address6

    @property
    def controller_names(self) -> tuple[str, ...]:
        """The names under which the hosts find the controller."""
        return (CONTROLLER_NAME, f"*.{CONTROLLER_NAME}")

    def resolve(self, name: str, *, ipv6: bool = False) -> str:
        """The address that the hosts' name server gives for a name. Raises TestbedError when it knows none."""
        return self.network.resolve(name, ipv6=ipv6)

    def up(
        self,
        name: str,
        *,
        release: str = "trixie",
        names: Iterable[str] = (),
        layers: Iterable[Path] = (),
        wipe: bool = True,
    ) -> Host:
        """A running host, ready for SSH.

        It owns `<name>.test` and all names below, and `names` (`*.example.test` means all below that one). `layers` are
        directories whose content a new host has beside Debian's; they are only read, and must stay as they are. With
        `wipe`, it is always a fresh one; without, it keeps its disk, release and names, and may be running already.
        Raises TestbedError.
        """
        if not HOST_NAME.fullmatch(name) or f"{name}.test" == CONTROLLER_NAME:
            raise TestbedError(f"{name!r} cannot be a host's name: use up to 32 of a-z, 0-9 and -")
        asked = tuple(dict.fromkeys([f"{name}.test", f"*.{name}.test", *names]))
        for domain in asked:
            if not DOMAIN.fullmatch(domain):
                raise TestbedError(f"{domain!r} cannot be resolved: use example.test or *.example.test")
        with self._locked():
            ensure_tools()
            self._check_disk()
            disk.ensure(self.directory / "hosts")
            self._clean()
            host = self._find(name)
            self._claim(name, asked if wipe or not host else host.names)
            if host and wipe:
                host._delete()
                host = None
            if host and host.running:
                starting = False
            else:
                self.network.ensure()
                if not host:
                    host = self._create(name, release, asked, tuple(map(str, layers)))
                    self._note(name)
                self._serve_names()
                host._launch()
                starting = True
        try:
            host.wait_ready()
        except TestbedError:
            if starting and wipe:
                say(f"{name} is kept as it is, for a look at {host.directory / 'console.log'}")
            raise
        return host

    def prepare(self) -> None:
        """Make what hosts need and what is missing, of all releases at once: the first host of each would wait for it in turn.

        Raises TestbedError.
        """
        with self._locked(), ThreadPoolExecutor(len(RELEASES)) as pool:
            ensure_tools()
            list(pool.map(ensure_root, itertools.repeat(self.directory / "roots"), RELEASES))

    @staticmethod
    def _note(name: str) -> None:
        """Add the host to the list in the file $TESTBED_MADE, so that it can be removed if its process ends early."""
        if made := os.environ.get("TESTBED_MADE"):
            with Path(made).open("a") as names:
                names.write(f"{name}\n")

    def get(self, name: str) -> Host:
        """A running host. Raises TestbedError when there is none of this name."""
        host = self._find(name)
        if not host:
            raise TestbedError(f"there is no host {name}: start it with `python -m tests.testbed up {name}`")
        if not host.running:
            raise TestbedError(f"{name} is stopped: start it with `python -m tests.testbed up {name} --keep-disk`")
        return host

    def find(self, name: str) -> Host:
        """A host, running or stopped. Raises TestbedError when there is none of this name."""
        host = self._find(name)
        if not host:
            raise TestbedError(f"there is no host {name}")
        return host

    def hosts(self) -> list[Host]:
        """All hosts, running or stopped, by name."""
        found = [self._find(path.parent.name) for path in sorted(self.directory.glob("hosts/*/host.json"))]
        return [host for host in found if host]

    def _find(self, name: str) -> Host | None:
        try:
            record = json.loads((self.directory / "hosts" / name / "host.json").read_text())
            # Hosts of earlier versions have no layers.
            lists = {key: tuple(record.get(key, ())) for key in ("names", "layers")}
            return Host(self, _Record(**{**record, **lists}))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _create(self, name: str, release: str, names: tuple[str, ...], layers: tuple[str, ...]) -> Host:
        root = ensure_root(self.directory / "roots", release)
        taken = {host.number for host in self.hosts()}
        # The same host gets the same address each time, if it is free.
        first = NUMBERS.index(first_number(name))
        free = [n for n in (NUMBERS[(first + i) % len(NUMBERS)] for i in range(len(NUMBERS))) if n not in taken]
        if not free:
            raise TestbedError("no address is left on the hosts' bridge: remove hosts with `down --all`")
        host = Host(self, _Record(name, release, root.name, free[0], names, layers))
        host._write_disk()
        host._save(host.record)
        return host

    def _claim(self, name: str, names: tuple[str, ...]) -> None:
        """Assign names to a host; a stopped host loses them, because a crashed run must not block the next."""
        for other in self.hosts():
            common = set(other.names) & set(names)
            if other.name == name or not common:
                continue
            if other.running:
                raise TestbedError(f"{min(common)} belongs to the running host {other.name}")
            other._save(replace(other.record, names=tuple(n for n in other.names if n not in common)))

    def _serve_names(self) -> None:
        self.network.serve_names({host.address: host.names for host in self.hosts()})
        files = [f'Include "{host.ssh_config}"\n' for host in self.hosts()]
        self.ssh_config.write_text("".join(files))

    def _clean(self) -> None:
        """Remove the remains of a crashed run. Call with the testbed locked."""
        known = {host.name: host for host in self.hosts()}
        for host in known.values():
            if not host.running:
                host.container.kill()
        own = groups(self.run_directory) / self.bridge
        for group in own.iterdir() if own.exists() else ():
            if group.is_dir() and group.name not in known:
                remove_group(group)
        for directory in self.directory.glob("hosts/*"):
            if directory.name not in known:
                delete(directory)
        remove_unused(self.directory / "roots", {host.record.root for host in known.values()})

    def _check_disk(self) -> None:
        kind = run(["stat", "--file-system", "--format=%T", self.directory]).stdout.strip()
        if kind in ("overlayfs", "nfs", "fuseblk"):
            advice = "set TESTBED_DIRECTORY to a directory on a disk or a tmpfs"
            raise TestbedError(f"{self.directory} is on {kind}, which cannot be used for the hosts' disks: {advice}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock, so that no other process or thread changes the testbed."""
        require_root()
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                begin = time.monotonic()
                fcntl.flock(lock, fcntl.LOCK_EX)
                if (waited := time.monotonic() - begin) > 5:
                    say(f"waited {waited:.0f} s for another process that changed the testbed")
            yield

    def _public_key(self) -> str:
        if not self.ssh_key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.bridge, "-f", self.ssh_key])
        return self.ssh_key.with_suffix(".pub").read_text()


@dataclass(frozen=True)
class Host:
    """One throw-away Debian machine, made by `Testbed.up`."""

    bed: Testbed
    record: _Record

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def release(self) -> str:
        """The code name of its Debian release."""
        return self.record.release

    @property
    def number(self) -> int:
        """The last number of its address."""
        return self.record.number

    @property
    def names(self) -> tuple[str, ...]:
        """All the names it owns."""
        return self.record.names

    @property
    def domain(self) -> str:
        """Its domain name; it owns all names below as well."""
        return f"{self.name}.test"

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return self.bed.network.address_of(self.number)

    @property
    def address6(self) -> str:
        """Its IPv6 address, which is unique local: it reaches only the other hosts and the controller."""
        return self.bed.network.address6_of(self.address)

    @property
    def directory(self) -> Path:
        """Its directory on the controller."""
        return self.bed.directory / "hosts" / self.name

    @property
    def ssh_config(self) -> Path:
        """An OpenSSH configuration that knows it as `name`."""
        return self.directory / "ssh_config"

    @property
    def ssh_key(self) -> Path:
        """The private key that opens it, as root and as admin."""
        return self.bed.ssh_key

    @property
    def known_hosts(self) -> Path:
        """Its public key, for SSH clients."""
        return self.directory / "known_hosts"

    @property
    def container(self) -> Container:
        """The container it runs in."""
        return Container(f"{self.bed.bridge}-{self.name}", self.directory, self.bed.run_directory)

    @property
    def running(self) -> bool:
        """Whether it is running."""
        return self.container.process is not None

    @property
    def uptime(self) -> float:
        """Seconds since it last booted; 0 when it is stopped."""
        try:
            fields = Path(f"/proc/{self.container.init}/stat").read_text().rpartition(")")[2].split()
            return float(Path("/proc/uptime").read_text().split()[0]) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        except OSError:
            return 0

    @property
    def disk_use(self) -> int:
        """Bytes written to its disk, beyond what the release's hosts share."""
        return 1024 * int(run(["du", "-sk", self.directory / "upper"], check=False).stdout.split()[0])

    def run(
        self, command: str, *, check: bool = True, user: str = "root", stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command over SSH and capture what it prints.

        `timeout` is in seconds. Raises CommandFailed (with `check`) when it fails, and TestbedError when the host
        cannot be reached or the command takes too long.
        """
        if not self.running:
            raise TestbedError(f"{self.name} is stopped")
        wrapped = command if user in ("root", "admin") else f"runuser -u {user} -- sh -c {shlex.quote(command)}"
        login = "admin" if user == "admin" else "root"
        try:
            done = subprocess.run(
                self.ssh(wrapped, user=login),
                input="" if stdin is None else stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise TestbedError(f"{self.name}: {command!r} took longer than {timeout:g} s") from None
        if done.returncode == 255 and (check or done.stderr.startswith("ssh:")):
            raise TestbedError(f"{self.name} cannot be reached: {last_line(done.stderr)}")
        if check and done.returncode:
            raise CommandFailed(self.name, command, done)
        return done

    def ssh(self, *command: str, user: str = "root") -> list[str]:
        """The program and arguments that run a command, or a shell, on the host."""
        return ["ssh", "-F", str(self.ssh_config), "-l", user, self.name, *command]

    def put(self, local: Path, remote: str, *, mode: str = "644") -> None:
        """Copy a file to the host, owned by root; an existing file is replaced atomically. Raises TestbedError."""
        target = shlex.quote(remote)
        script = f"umask 077 && cat > {target}.new && chmod {mode} {target}.new && mv {target}.new {target}"
        with local.open("rb") as source:
            self._copy(subprocess.run(self.ssh(script), stdin=source, stderr=subprocess.PIPE), local, remote)

    def get(self, remote: str, local: Path) -> None:
        """Copy a file from the host. Raises TestbedError."""
        command = self.ssh(f"cat {shlex.quote(remote)}")
        with local.open("wb") as target:
            self._copy(subprocess.run(command, stdout=target, stderr=subprocess.PIPE), local, remote)

    def copy_directories(self, directories: Iterable[str], local: Path) -> None:
        """Copy directories of the running host into `local`, with their paths, owners, modes and times. Raises TestbedError."""
        root = f"/proc/{self.container.init}/root"
        paths = [path.removeprefix("/") for path in directories]
        run(["env", f"--chdir={root}", "cp", "-a", "--parents", *paths, local], timeout=300)

    def _copy(self, done: subprocess.CompletedProcess[bytes], local: Path, remote: str) -> None:
        if done.returncode:
            reason = last_line(done.stderr.decode(errors="replace"))
            raise TestbedError(f"{self.name}: could not copy between {local} and {remote}: {reason}")

    def wait_ready(self, timeout: float = 120) -> None:
        """Wait until it has booted and answers over SSH; `timeout` is in seconds. Raises TestbedError."""
        deadline = time.monotonic() + timeout
        reason = "nothing listens on port 22"
        while time.monotonic() < deadline:
            if not self.running:
                raise TestbedError(f"{self.name} stopped while booting: {self.container.last_console_line()}")
            # Not by connecting to the port: sshd would penalise the controller for it (PerSourcePenalties).
            if not self.container.listens(22):
                time.sleep(0.02)
                continue
            try:
                left = max(1, deadline - time.monotonic())
                # "degraded" is ready as well: a failed unit is for the tests to find.
                state = self.run("systemctl is-system-running --wait", check=False, timeout=left).stdout.strip()
                if state in ("running", "degraded"):
                    return
                reason = f"its systemd is {state or 'not up'}"
            except TestbedError as error:
                reason = str(error)
                time.sleep(0.05)
        raise TestbedError(f"{self.name} is not ready after {timeout:g} s: {reason}")

    def start(self) -> None:
        """Start it with its existing disk, and wait until it is ready. Raises TestbedError."""
        with self.bed._locked():
            if not self.running:
                self.bed.network.ensure()
                self.bed._serve_names()
                self._launch()
        self.wait_ready()

    def stop(self, timeout: float = 30) -> None:
        """Shut it down cleanly; after `timeout` seconds it is killed. Its disk stays."""
        self._close_connections()
        self.container.stop(timeout)

    def kill(self) -> None:
        """As a power failure: every process is killed at once. Its disk stays."""
        self.container.kill()
        self._close_connections()

    def reboot(self, timeout: float = 60) -> None:
        """Reboot cleanly and wait until it is ready; `timeout` is in seconds. Raises TestbedError."""
        before = self.container.init
        self.run("systemctl reboot", check=False)
        self._close_connections()
        deadline = time.monotonic() + timeout
        while self.container.init in (before, None):
            if time.monotonic() > deadline or not self.running:
                raise TestbedError(f"{self.name} did not reboot: {self.container.last_console_line()}")
            time.sleep(0.02)
        self.wait_ready(max(1, deadline - time.monotonic()))

    def cut_off(self) -> None:
        """Disconnect it from the network. It keeps running."""
        run(["ip", "link", "set", self.container.cable, "down"])
        self._close_connections()

    def reconnect(self) -> None:
        """Connect it to the network again, and wait until it answers. Raises TestbedError."""
        run(["ip", "link", "set", self.container.cable, "up"])
        self.wait_ready()

    def down(self) -> None:
        """Kill it and delete it; with the last host, the network is removed as well."""
        with self.bed._locked():
            self._delete()
            if self.bed.hosts():
                self.bed._serve_names()
            else:
                self.bed.network.remove()
                remove_group(groups(self.bed.run_directory) / self.bed.bridge)
                disk.remove(self.bed.directory / "hosts")

    def journal(self, unit: str | None = None, lines: int = 100) -> str:
        """The last `lines` of its journal, of one unit or of all, also if it is cut off or stopped. Raises TestbedError."""
        command = ["journalctl", "--no-pager", f"--lines={lines}", *([f"--unit={unit}"] if unit else [])]
        if self.running:
            return self.container.attach(command, timeout=30)
        return run([*command, f"--directory={self.directory / 'upper/var/log/journal'}"]).stdout

    def inside(self, command: Sequence[str], *, timeout: float = 60) -> str:
        """Run a program as root without the network, as on a machine's own console: for a host that is cut off.

        Returns what it prints. `timeout` is in seconds. Raises TestbedError.
        """
        return self.container.attach(command, timeout=timeout)

    def _launch(self) -> None:
        root = self.bed.directory / "roots" / self.record.root
        self.container.launch([*map(Path, self.record.layers), root], self.bed.bridge)

    def _delete(self) -> None:
        self.kill()
        delete(self.directory)

    def _save(self, record: _Record) -> None:
        path = self.directory / "host.json"
        path.with_suffix(".new").write_text(json.dumps(asdict(record)))
        path.with_suffix(".new").rename(path)

    def _close_connections(self) -> None:
        """Close the shared SSH connections, which would otherwise hang until a timeout."""
        if self.ssh_config.exists():
            for user in ("root", "admin"):
                run([*self.ssh(user=user)[:-1], "-O", "exit", self.name], check=False)

    def _write_disk(self) -> None:
        """Write the host's own files to its disk: names, addresses, keys."""
        network = self.bed.network
        self.bed.run_directory.mkdir(parents=True, exist_ok=True)
        public_key = self.bed._public_key()
        etc_ssh = self.directory / "upper/etc/ssh"
        for directory, mode in (("etc", 0o755), ("etc/ssh", 0o755), ("root", 0o700), ("home/admin", 0o755)):
            (self.directory / "upper" / directory).mkdir(parents=True, exist_ok=True)
            (self.directory / "upper" / directory).chmod(mode)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", etc_ssh / "ssh_host_ed25519_key"])
        host_key = " ".join((etc_ssh / "ssh_host_ed25519_key.pub").read_text().split()[:2])
        addresses = {"link_address": network.link_address_of(self.number), "address": self.address}
        cable = CABLE.format(**addresses, address6=self.address6, mtu=network.mtu, gateway=network.address)
        hosts = (
            f"127.0.0.1 localhost\n{self.address} {self.domain} {self.name}\n::1 localhost ip6-localhost ip6-loopback\n"
        )
        files = {
            "/etc/hostname": f"{self.name}\n",
            "/etc/hosts": hosts,
            "/etc/machine-id": f"{uuid.uuid4().hex}\n",
            "/etc/resolv.conf": f"nameserver {network.address}\noptions timeout:1 attempts:5\n",
            "/etc/systemd/network/10-cable.network": cable,
            "/root/.ssh/authorized_keys": public_key,
            "/home/admin/.ssh/authorized_keys": public_key,
            **registry_settings(),
        }
        for path, content in files.items():
            target = self.directory / "upper" / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if ".ssh" in path else 0o755)
            target.write_text(content)
            target.chmod(0o644)
        generators = self.directory / "upper/etc/systemd/system-generators"
        generators.mkdir()
        for name in IDLE_GENERATORS:
            (generators / f"systemd-{name}-generator").symlink_to("/dev/null")
        for path in ("", ".ssh", ".ssh/authorized_keys"):
            os.chown(self.directory / "upper/home/admin" / path, 1000, 1000)
        self.known_hosts.write_text(f"{self.name},{self.domain},{self.address},{self.address6} {host_key}\n")
        names = {"name": self.name, "domain": self.domain, "address": self.address, "key": self.ssh_key}
        self.ssh_config.write_text(SSH.format(**names, known_hosts=self.known_hosts, run=self.bed.run_directory))
