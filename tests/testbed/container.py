"""One container: systemd-nspawn in a mount namespace and a control group of its own, so that neither outlives it."""

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

# The overlay and the control groups are mounted where only this container sees them: whatever way it dies, the mounts
# go with it. `volatile` saves every fsync; it is safe because a killed container loses nothing of the controller's page
# cache, and the mark it leaves would only forbid the next mount.
#
# systemd-nspawn leaves a reboot to whoever started it (status 133), and makes groups of its own below the one it is
# started in, where after that no process may be: so each boot gets a new one.
LAUNCH = """\
set -e
directory=$1 root=$2 machine=$3 group=/sys/fs/cgroup/$4
shift 4
cd "$directory"
mkdir -p upper work merged
rm -rf work/work/incompat
mount -t overlay -o "lowerdir=$root,upperdir=upper,workdir=work,volatile,redirect_dir=on" "$machine" merged
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "$group/launcher"
echo $$ > "$group/launcher/cgroup.procs"
echo $$ > pid
# The release decides whether /tmp is on the disk or in memory, as on a machine.
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

# As much like a machine as a container gets: services inside set up namespaces, filters and BPF programs of their own.
# What is dropped would reach into the controller: its modules, its hardware, its clock.
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
    """The machine `machine` on the disk in `directory`; `run` holds what all of the testbed's machines share."""

    machine: str
    directory: Path
    run: Path

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def process(self) -> int | None:
        """The process id of what keeps it running, if that is ours."""
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
        """Whether anything inside accepts TCP connections on a port, asked without making one."""
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{self.init}/net/{table}").read_text().splitlines()[1:]:
                    _, local, _, state, *_ = line.split()
                    if local.endswith(f":{port:04X}") and state == "0A":
                        return True
        return False

    def launch(self, root: Path, bridge: str) -> None:
        """Boot, detached from this process, and return once that is under way. Raises TestbedError."""
        self.kill()
        # The kernel removes a dead container's end of the cable a little later than its processes.
        run(["ip", "link", "delete", self.cable], check=False)
        (self.directory / "pid").unlink(missing_ok=True)
        group = self._group()
        script: list[str | Path] = [self.directory, os.path.relpath(root, self.directory), self.machine]
        script += [f"{group.parent.name}/{group.name}"]
        inner: list[str | Path] = ["sh", "-c", LAUNCH, "sh", *script, *OPTIONS, f"--network-bridge={bridge}"]
        command: list[str | Path] = ["setsid", "--fork", "unshare", "--mount", "--propagation=private", *inner]
        shell = 'log=$1; shift; exec "$@" > "$log" 2>&1'
        run(["sh", "-c", shell, "sh", self.console, *command])
        deadline = time.monotonic() + 10
        while not self.process:
            if time.monotonic() > deadline:
                raise TestbedError(f"{self.machine} did not start: {self.last_words()}")
            time.sleep(0.01)

    def stop(self, timeout: float) -> None:
        """Shut down in order; pull the plug after `timeout` seconds."""
        if number := self.init:
            # What systemd as PID 1 takes for an orderly power-off.
            os.kill(number, signal.SIGRTMIN + 4)
            deadline = time.monotonic() + timeout
            while self.process and time.monotonic() < deadline:
                time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """Kill every process of the container at once, and what remains of an earlier one."""
        remove_group(self._group())
        shutil.rmtree(Path("/run/systemd/nspawn/propagate", self.machine), ignore_errors=True)

    def attach(self, command: Sequence[str], *, timeout: float) -> str:
        """Run a program inside without the network. Raises TestbedError."""
        if not (init := self.init):
            raise TestbedError(f"{self.machine} is not running")
        return run(["nsenter", f"--target={init}", "--all", *command], timeout=timeout).stdout

    @property
    def cable(self) -> str:
        """The controller's end of the host's network cable, as systemd-nspawn names it."""
        return f"vb-{self.machine}"

    def last_words(self) -> str:
        try:
            return last_line(self.console.read_text(errors="replace"))
        except OSError:
            return "it left no console output"

    def _group(self) -> Path:
        testbed, _, name = self.machine.partition("-")
        return groups(self.run) / testbed / name


def groups(run_directory: Path) -> Path:
    """Where the controller has control groups version 2, mounted in `run_directory` if nowhere else."""
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
