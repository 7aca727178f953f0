"""`make render`: every file that a few sample deployments have on their machines, secrets masked, to read a change as a diff.

pyinfra's command line runs deploy.py against machines that do not exist, and every file that is passed to
`operations.files.present` is written to <directory>/<deployment>/<machine>/<path>. <directory>/files.txt lists the mode and owner
of each file and directory.
"""

import json
import runpy
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from pyinfra.api.host import Host
from pyinfra.context import host as current_host

from operations import files
from operations.files import Absent, Directory, Entry, File
from operations.machine import MARKER, Machine, MachineState
from roles import ROLES
from tests.conftest import ADMIN_PASSWORD_HASH, livekit_archive
from tests.deployment import ROOT, Deployment
from tests.standin.archives import cinny_archive, element_archive, ketesa_archive, mas_archive, uplot_archive

INDEX = "files.txt"
STAND_IN = ROOT / "tests" / "standin" / "syncv3"
# The secrets are masked in the output; machines record the vault's id.
VAULT = {
    "format": 1,
    "id": "0123456789abcdef",
    "secrets": {"admin_password_hash": ADMIN_PASSWORD_HASH}
    | dict.fromkeys(
        (
            "smtp_password",
            "acme_eab_hmac_key",
            "turn_acme_eab_hmac_key",
            "sso_client_secret_example",
            "backup_s3_access_key",
            "backup_s3_secret_key",
        ),
        "given",
    ),
}


@dataclass(frozen=True)
class Sample:
    """A deployment to render. roles: role -> its machines. release: of Debian. settings: in addition to SETTINGS."""

    roles: Mapping[str, Sequence[str]]
    release: str = "13"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def machines(self) -> list[str]:
        return list(dict.fromkeys(name for names in self.roles.values() for name in names))


def _as_in(name: str) -> Sample:
    """The machines of inventories/<name>.py, each by the first part of its name."""
    groups = runpy.run_path(str(ROOT / "inventories" / f"{name}.py"))
    return Sample({role: [host.partition(".")[0] for host, _ in groups[role]] for role in ROLES if role in groups})


ONE = {role: ["matrix"] for role in ROLES}
SAMPLES = {
    "prod": _as_in("prod"),
    "split": _as_in("split"),
    "everything": Sample(
        ONE,
        settings={
            "acme": {"directory": "https://acme.example.net/directory", "eab_key_id": "web-key"},
            "turn_acme": {"directory": "https://ca.example.net/directory", "eab_key_id": "turn-key"},
            "external_ip": "198.51.100.7",
            "admin_networks": ["192.0.2.0/24"],
            "backup_target": "s3://s3.example.net/backups/matrix",
            "federation_port_8448": True,
            "private_networks": ["10.1.0.0/16"],
            "registration": "token",
            "sso": [
                {"id": "example", "issuer": "https://id.example.net/", "client_id": "matrix", "name": "Example"},
            ],
            "smtp_host": "mail.metal.test",
            "smtp_username": "mailer",
        },
    ),
    "debian12": Sample(
        {role: machines for role, machines in ONE.items() if "12" in ROLES[role].debian},
        release="12",
        settings={"tls": "files", "tls_files": {"certificate": "/etc/ssl/chain.pem", "key": "/etc/ssl/key.pem"}},
    ),
}
SETTINGS = {
    "server_name": "metal.test",
    "admin_email": "admin@metal.test",
    # Any existing file: it is neither downloaded nor checked.
    "backup_target": "/mnt/backup",
    "sliding_sync_binary": str(STAND_IN),
    "lk_jwt_binary": str(STAND_IN),
}


def render(directory: Path, names: Sequence[str] = tuple(SAMPLES)) -> None:
    """Write the deployments of these names.

    What an earlier rendering left in the directory is removed; a directory with anything else in it is refused.
    """
    if directory.exists() and any(directory.iterdir()):
        if not (directory / INDEX).exists():
            raise SystemExit(f"{directory} has something else than rendered files: choose another directory with OUT=")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / INDEX).touch()  # so that an interrupted rendering is recognised, too
    with ThreadPoolExecutor(2) as pool:
        rendered = pool.map(lambda name: _run(name, directory.resolve() / name), names)
        lines = sorted({line for lines in rendered for line in lines})
    (directory / INDEX).write_text("".join(f"{path:90} {access}\n" for path, access in lines))


def _run(name: str, directory: Path) -> list[tuple[str, str]]:
    """Render one deployment; path and access of each entry."""
    sample = SAMPLES[name]
    with tempfile.TemporaryDirectory() as temporary:
        temporary_directory = Path(temporary)
        livekit = temporary_directory / "livekit.tar.gz"
        livekit.write_bytes(livekit_archive())
        settings = {
            **SETTINGS,
            "mas_archive": str(mas_archive(temporary_directory)),
            "livekit_archive": str(livekit),
            "element_archive": str(element_archive(temporary_directory, "v1")),
            "cinny_archive": str(cinny_archive(temporary_directory)),
            "ketesa_archive": str(ketesa_archive(temporary_directory)),
            "uplot_archive": str(uplot_archive(temporary_directory)),
            "uplot_sha256": None,
            **sample.settings,
        }
        deployment = Deployment(temporary_directory, [], settings, roles={}, name="sample")
        deployment.environment |= {"PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0"}
        key = Fernet.generate_key()
        deployment.vault.with_suffix(".key").touch(mode=0o600)
        deployment.vault.with_suffix(".key").write_bytes(key)
        deployment.vault.write_bytes(Fernet(key).encrypt(json.dumps(VAULT).encode()))
        entries = temporary_directory / "entries"
        deployment.inventory.write_text(
            "from pathlib import Path\nfrom tests.render import pretend\n"
            f"pretend({name!r}, Path({str(directory)!r}), Path({str(entries)!r}))\n"
            + "".join(f"{role} = {[_host(sample, each) for each in names]!r}\n" for role, names in sample.roles.items())
        )
        deployment.run("--dry")
        lines = [json.loads(line) for line in entries.read_text().splitlines()]
        return [(f"{name}/{path}", access) for path, access in lines]


def _host(sample: Sample, machine: str) -> tuple[str, dict[str, Any]]:
    """A machine that does not exist, for the inventory."""
    return f"@fake/{machine}", {"address": _state(sample, machine).addresses[0]}


def _state(sample: Sample, machine: str) -> MachineState:
    number = sample.machines.index(machine) + 1
    return MachineState(
        came_to=22,
        user="root",
        root=True,
        distribution="debian",
        release=sample.release,
        architecture="amd64",
        processors=4,
        memory=8192,
        disk=65536,
        addresses=(f"192.0.2.{number}", f"2001:db8::{number}"),
    )


def pretend(name: str, directory: Path, entries_file: Path) -> None:
    """Make pyinfra, in its own process, see empty machines, and write the files to the directory instead.

    The inventory calls it, before any task is run.
    """
    sample, present = SAMPLES[name], files.present

    def get_fact(host: Host, fact: Any, *_: Any, **__: Any) -> Any:
        return _state(sample, _machine(host)) if fact is Machine else fact.default()

    def record(entries: Sequence[Entry]) -> None:
        with entries_file.open("a") as index:
            for entry in (each for each in entries if not isinstance(each, Absent)):
                path = f"{_machine(current_host)}{entry.path}"
                if isinstance(entry, File):
                    _write(directory / path, entry.content()[1], replaces=entry.path == MARKER)
                index.write(json.dumps([f"{path}/" if isinstance(entry, Directory) else path, _access(entry)]) + "\n")

    def writing(entries: Sequence[Entry], **arguments: Any) -> Any:
        record(entries)
        return present(entries=entries, **arguments)

    def inside_another(entries: Sequence[Entry]) -> Any:
        record(entries)
        return present._inner(entries=entries)

    Host.get_fact = get_fact  # type: ignore[method-assign, assignment]
    writing._inner = inside_another  # type: ignore[attr-defined]
    files.present = writing  # type: ignore[assignment]


def _machine(host: Host) -> str:
    return str(host.name).removeprefix("@fake/")


def _write(file: Path, content: bytes, replaces: bool) -> None:
    """Write a file; if two roles write the same file, the content must be the same, unless it replaces the earlier one."""
    if file.exists() and file.read_bytes() != content and not replaces:
        raise ValueError(f"{file} is written twice, and differently")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _access(entry: Directory | File) -> str:
    return f"{entry.mode} {entry.user}:{entry.group}"


def main() -> None:
    directory = Path(sys.argv[1])
    render(directory)
    print(f"{directory} has the files of {', '.join(SAMPLES)}; {INDEX} there lists their modes and owners.")


if __name__ == "__main__":
    main()
