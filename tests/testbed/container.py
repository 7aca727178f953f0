"""One container: systemd-nspawn in its own mount namespace and control group, so that nothing of it remains."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .tools import TestbedError, last_line, run

# The overlay and the control groups are mounted in a namespace of this container only: however it ends, the mounts end with
# it. `volatile` omits every fsync; that is safe because the controller's page cache survives a killed container. The mark that
# it leaves (work/work/incompat) would only prevent the next mount.
#
# On a reboot systemd-nspawn exits with status 133, for its caller to start it again. It makes control groups below the one it
# is started in, which then may have no process of its own: so each boot gets a new group.
LAUNCH = """\
set -e
directory=$1 lower=$2 machine=$3 group=/sys/fs/cgroup/$4
shift 4
cd "$directory"
mkdir -p upper work merged
rm -rf work/work/incompat
mount -t overlay -o "lowerdir=$lower,upperdir=upper,workdir=work,volatile,redirect_dir=on" "$machine" merged
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "$group/launcher"
echo $$ > "$group/launcher/cgroup.procs"
echo $$ > pid
# As on a machine, the Debian release decides whether /tmp is on the disk or in memory.
export SYSTEMD_NSPAWN_TMPFS_TMP=0
status=133
while [ $status = 133 ]; do
    [ ! -d "$group/boot" ] || find "$group/boot" -depth -type d -delete
    mkdir "$group/boot"
    status=0
    sh -c 'echo $$ > "$0/cgroup.procs"; exec systemd-nspawn "$@"' "$group/boot" \
        --machine="$machine" --directory=merged "$@" || status=$?
done
exit $status
"""

# As much like a machine as possible: services inside may use namespaces, filters and BPF programs. The dropped capabilities
# would affect the controller: its kernel modules, its hardware, its clock.
OPTIONS = (
    "--quiet",
    "--boot",
    "--settings=no",
    "--register=no",
    "--keep-unit",
    "--resolv-conf=off",
    "--timezone=off",
    "--link-journal=no",
    "--console=read-only",
    "--capability=all",
    "--drop-capability=CAP_SYS_MODULE,CAP_SYS_RAWIO,CAP_SYS_TIME",
    "--system-call-filter=@known",
)


@dataclass(frozen=True)
class Container:
    """The machine `machine` on the disk in `directory`; `run` has what all of the testbed's machines share."""

    machine: str
    directory: Path
    run: Path

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def process(self) -> int | None:
        """The process id, on the controller, of the script that runs it; None if it does not run."""
        try:
            number = int((self.directory / "pid").read_text())
            words = Path(f"/proc/{number}/cmdline").read_text().split("\0")
        except (OSError, ValueError):
            return None
        return number if self.machine in words else None

    @property
    def init(self) -> int | None:
        """The process id, on the controller, of the container's own PID 1."""
        try:
            return int((self._group() / "boot/payload/init.scope/cgroup.procs").read_text().split()[0])
        except (OSError, IndexError):
            return None

    def listens(self, port: int) -> bool:
        """Whether anything inside listens on a TCP port, without connecting to it."""
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{self.init}/net/{table}").read_text().splitlines()[1:]:
                    _, local, _, state, *_ = line.split()
                    if local.endswith(f":{port:04X}") and state == "0A":
                        return True
        return False

    def launch(self, lower: Sequence[Path], bridge: str) -> None:
        """Boot, detached from this process, and return once the boot has begun. Raises TestbedError.

        lower: what its disk has before anything is written to it; of two files of the same path, the first counts.
        """
        self.kill()
        # The kernel removes a dead container's end of the cable a little later than its processes.
        run(["ip", "link", "delete", self.cable], check=False)
        (self.directory / "pid").unlink(missing_ok=True)
        group = self._group()
        # Relative, because the kernel takes no more than a page of options.
        layers = ":".join(os.path.relpath(path, self.directory) for path in lower)
        script: list[str | Path] = [self.directory, layers, self.machine]
        script += [f"{group.parent.name}/{group.name}"]
        inner: list[str | Path] = ["sh", "-c", LAUNCH, "sh", *script, *OPTIONS, f"--network-bridge={bridge}"]
        command: list[str | Path] = ["setsid", "--fork", "unshare", "--mount", "--propagation=private", *inner]
        shell = 'log=$1; shift; exec "$@" > "$log" 2>&1'
        run(["sh", "-c", shell, "sh", self.console, *command])
        deadline = time.monotonic() + 10
        while not self.process:
            if time.monotonic() > deadline:
                raise TestbedError(f"{self.machine} did not start: {self.last_console_line()}")
            time.sleep(0.01)

    def stop(self, timeout: float) -> None:
        """Shut down cleanly; kill it after `timeout` seconds."""
        if number := self.init:
            # The signal that makes systemd, as PID 1, power off.
            os.kill(number, signal.SIGRTMIN + 4)
            deadline = time.monotonic() + timeout
            while self.process and time.monotonic() < deadline:
                time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """Kill every process of the container at once, also of an earlier one."""
        remove_group(self._group())
        shutil.rmtree(Path("/run/systemd/nspawn/propagate", self.machine), ignore_errors=True)

    def rest(self, resting: bool) -> None:
        """Let all of its processes stand still, or go on. Its clock goes on."""
        (self._group() / "boot/cgroup.freeze").write_text(str(int(resting)))

    def attach(self, command: Sequence[str], *, timeout: float) -> str:
        """Run a program inside without the network. Raises TestbedError."""
        if not (init := self.init):
            raise TestbedError(f"{self.machine} is not running")
        return run(["nsenter", f"--target={init}", "--all", *command], timeout=timeout).stdout

    @property
    def cable(self) -> str:
        """The controller's end of the host's network cable, as systemd-nspawn names it."""
        return f"vb-{self.machine}"

    def last_console_line(self) -> str:
        try:
            return last_line(self.console.read_text(errors="replace"))
        except OSError:
            return "it left no console output"

    def _group(self) -> Path:
        testbed, _, name = self.machine.partition("-")
        return groups(self.run) / testbed / name


def groups(run_directory: Path) -> Path:
    """Where control groups version 2 are mounted on the controller; mounted in `run_directory` if they are not."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    own = run_directory / "cgroup"
    own.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "cgroup2", "cgroup2", own])
    return own


def remove_group(group: Path, timeout: float = 10) -> None:
    """Kill everything in a control group and remove it. Raises TestbedError after `timeout` seconds."""
    if not group.exists():
        return
    (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + timeout
    while True:
        try:
            for directory, _, _ in os.walk(group, topdown=False):
                Path(directory).rmdir()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TestbedError(f"processes in {group} do not die: {error.strerror}") from None
            time.sleep(0.01)
