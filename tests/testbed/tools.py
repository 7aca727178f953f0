"""Running programs, and getting those the testbed needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Program -> Debian package.
NEEDED = {
    "dnsmasq": "dnsmasq-base",
    "gpg": "gnupg",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "ssh": "openssh-client",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
}

# `su` without `-` leaves the system directories out of the path.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class TestbedError(Exception):
    """The testbed cannot do what was asked; the message is one line for the operator."""

    __test__ = False


def say(message: str) -> None:
    """Tell the operator, on stderr, why something takes time."""
    print(f"testbed: {message}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a program of the controller's and capture what it prints.

    `timeout` is in seconds. Raises TestbedError when the program is missing, takes too long or (with `check`) fails.
    """
    try:
        done = subprocess.run(
            [str(word) for word in command],
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", **(env or {})},
        )
    except FileNotFoundError:
        raise TestbedError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise TestbedError(f"{command[0]} took longer than {timeout:g} s") from None
    if check and done.returncode:
        raise TestbedError(f"{command[0]} failed: {last_line(done.stderr, done.stdout)}")
    return done


def last_line(*texts: str) -> str:
    """The last line that is not empty, in which a program usually gives its reason."""
    for text in texts:
        for line in reversed(text.splitlines()):
            if line.strip():
                return line.strip()
    return "it gave no reason"


def delete(directory: Path) -> None:
    """Delete a directory, but nothing on file systems that are still mounted in it."""
    run(["rm", "-rf", "--one-file-system", directory], timeout=300)


def require_root() -> None:
    """Raise TestbedError, with what to do instead, if throw-away hosts are not possible here."""
    if sys.platform != "linux":
        raise TestbedError("throw-away hosts need a Linux controller: run this in a Debian virtual machine")
    if os.geteuid() != 0:
        raise TestbedError("throw-away hosts need root: run this with sudo or in a root shell")


def ensure_tools() -> None:
    """Install what is missing on the controller.

    Raises TestbedError, with what to do instead, if that is not possible.
    """
    missing = {package for program, package in NEEDED.items() if not shutil.which(program, path=SEARCH_PATH)}
    if not KEYRING.exists():
        missing.add("debian-archive-keyring")
    if not missing:
        return
    packages = sorted(missing)
    if not shutil.which("apt-get", path=SEARCH_PATH):
        raise TestbedError(f"there is no apt-get here: install {', '.join(packages)} by hand first")
    say(f"installing {', '.join(packages)} on this machine")
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run([*apt, "update"], env=quiet, timeout=600)
    run([*apt, "install", "-y", "--no-install-recommends", *packages], env=quiet, timeout=600)
