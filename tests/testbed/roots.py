"""A minimal Debian root per release, made once and then only read: every host's disk is an overlay on one."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
from pathlib import Path

from .tools import KEYRING, TestbedError, delete, last_line, run, say

RELEASES = {"trixie": "13", "bookworm": "12"}

# The packages of a Debian network installation that a deployment may rely on. No Python: pyinfra needs none on a host.
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "libpam-systemd",
    "netbase",
    "openssh-server",
    "procps",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
)

# Only for speed: throw-away hosts need no manuals.
NO_DOCUMENTATION = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-include=/usr/share/doc/*/examples/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
)

SOURCES = """\
deb http://deb.debian.org/debian {release} main
deb http://deb.debian.org/debian {release}-updates main
deb http://deb.debian.org/debian-security {release}-security main
"""

# Run inside the new root. The debug file systems are masked because they would be the controller's own; the apt timers are
# disabled because they would take apt's lock in the middle of a test. Packages with alternatives (PostgreSQL's) fail to
# install if the directories of manual pages are missing.
FINISH = """\
set -e
useradd --create-home --shell /bin/bash --groups sudo admin
echo 'admin ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/admin
chmod 440 /etc/sudoers.d/admin
echo LANG=C.UTF-8 > /etc/default/locale
update-ca-certificates >&2
systemctl enable systemd-networkd.service
systemctl disable apt-daily.timer apt-daily-upgrade.timer
systemctl mask sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount
mkdir -p /usr/share/man/man1 /usr/share/man/man5 /usr/share/man/man7 /usr/share/man/man8
rm -rf /etc/hostname /etc/resolv.conf /etc/machine-id /var/lib/dbus/machine-id /etc/ssh/ssh_host_*
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/*.log
touch /usr /etc/.updated /var/.updated
"""

SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
OWN_CERTIFICATES = Path("/usr/local/share/ca-certificates")

# Only settings about how registries are reached; those about which packages are used (find-links) are left out on purpose.
APT_SETTINGS = re.compile(r"Acquire::(https?|Check-Date|Check-Valid-Until|ForceIPv[46]|Retries)\b")
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")


def ensure_root(directory: Path, release: str) -> Path:
    """The root of a release in `directory`, made if there is none of the current recipe. Call with the testbed locked."""
    if release not in RELEASES:
        raise TestbedError(f"unknown Debian release {release!r}: choose from {', '.join(RELEASES)}")
    certificates = _own_certificates()
    recipe = json.dumps([release, PACKAGES, NO_DOCUMENTATION, SOURCES, FINISH, certificates])
    root = directory / f"{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not root.exists():
        say(f"making a minimal Debian {RELEASES[release]} ({release}), once; this takes about half a minute")
        _build(root, release, certificates)
    return root


def remove_unused(directory: Path, used: set[str]) -> None:
    """Delete remains of interrupted builds, and roots of earlier recipes whose names are not in `used`."""
    if not directory.exists():
        return
    latest: dict[str, Path] = {}
    finished = [path for path in directory.iterdir() if not path.name.endswith(".partial")]
    for path in sorted(finished, key=lambda path: path.stat().st_mtime):
        latest[path.name.partition("-")[0]] = path
    for path in directory.iterdir():
        if path.name not in used and path not in latest.values():
            delete(path)


def _build(root: Path, release: str, certificates: dict[str, str]) -> None:
    # The process id keeps this build apart from an interrupted one that is still running.
    partial = root.with_name(f"{root.name}.{os.getpid()}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    options = [f"--dpkgopt={line}" for line in NO_DOCUMENTATION]
    options += [f"--aptopt={line}" for line in _apt_settings().splitlines()]
    options += ['--aptopt=Acquire::Languages "none"', f"--include={','.join(PACKAGES)}", f"--keyring={KEYRING}"]
    made = run(
        ["mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", *options, release, partial, "-"],
        check=False,
        stdin=SOURCES.format(release=release),
        timeout=900,
    )
    if made.returncode:
        reason = next((line for line in made.stderr.splitlines() if line.startswith("E:")), last_line(made.stderr))
        raise TestbedError(f"could not make a Debian {release} root: {reason}")
    for name, content in certificates.items():
        target = partial / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    run(["chroot", partial, "sh", "-c", FINISH], timeout=120)
    # mmdebstrap restricts what it makes to root; a host's `/` must be readable by its services.
    partial.chmod(0o755)
    # The modification time tells which of a release's roots is the latest.
    os.utime(partial)
    partial.rename(root)


def registry_settings() -> dict[str, str]:
    """The controller's settings for apt and pip, so that both work on a host as well: path on the host -> content."""
    files = {"/etc/apt/apt.conf.d/90controller": _apt_settings(), "/etc/pip.conf": _pip_settings()}
    return {path: content for path, content in files.items() if content}


def _own_certificates() -> dict[str, str]:
    """The authorities that the controller trusts beyond Debian's: path -> content."""
    return {str(path): path.read_text() for path in sorted(OWN_CERTIFICATES.glob("**/*.crt"))}


def _apt_settings() -> str:
    lines = run(["apt-config", "dump"], check=False).stdout.splitlines()
    return "".join(f"{line}\n" for line in lines if APT_SETTINGS.match(line) and not line.endswith('"";'))


def _pip_settings() -> str:
    configured = configparser.RawConfigParser(strict=False)
    configured.read(["/etc/pip.conf", Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"])
    found = dict(configured["global"]) if configured.has_section("global") else {}
    for name, value in os.environ.items():
        if name.startswith("PIP_"):
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    kept = {name: found[name] for name in PIP_SETTINGS if name in found}
    if _own_certificates():
        # pip in a virtualenv has a list of authorities of its own, without the controller's.
        kept["cert"] = SYSTEM_BUNDLE
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items()) if kept else ""
