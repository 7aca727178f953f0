"""The backup: PostgreSQL by pgBackRest, all else by restic, to a directory, another machine or S3 storage."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import serialization
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter

from operations.machine import BACKUP_HOME, BACKUP_STATE, KEY_NOTE, MARKER, REHEARSAL_NOTE, RESTORE_HOME
from roles import BACKUP, BACKUP_USER, ROLES, Timer
from settings.deployment import Mail, SettingError, Settings, View
from settings.fields import A_TIME, Chosen, Explained, Host, Size, TimeOfDay, size_in_bytes
from settings.postgres import Postgres
from vault import Secret, pem

# Seconds after which PostgreSQL ends a file of its log that is not full. It is sent a minute later at the latest.
ARCHIVE_TIMEOUT = 120
# Where PostgreSQL leaves its log until it is sent.
SPOOL = "/var/spool/matrix-metal-backup"
PROGRAMS = "/usr/local/lib/matrix-metal"
# pgBackRest wants to be named in an archive_command.
KEEP_WAL = f"{PROGRAMS}/keep-for-pgbackrest"
PROGRAM, RESTORE_PROGRAM = f"{PROGRAMS}/backup", f"{PROGRAMS}/restore"
# A target in these would be hidden from the backup, or be emptied at the next boot.
UNSUITABLE = ("/home", "/root", "/run", "/tmp", "/var/tmp", "/dev", "/proc", "/sys", "/etc", "/usr", "/boot")  # noqa: S108

_PATH = r"/[A-Za-z0-9._/-]*[A-Za-z0-9._-]"


@dataclass(frozen=True)
class Target:
    """Where backups go. path: on the disk, on the other machine, or below the bucket ("" or "/...")."""

    kind: Literal["directory", "sftp", "s3"]
    path: str
    host: str = ""
    port: int = 0
    user: str = ""
    bucket: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, or Explained with what is wrong."""
        if text.startswith("/"):
            if not re.fullmatch(_PATH, text) or ".." in text.split("/") or "//" in text:
                raise ValueError
            if inside := [each for each in UNSUITABLE if f"{text}/".startswith(f"{each}/")]:
                raise Explained(f"{inside[0]} is no place for backups")
            if inside := [path for path in _all_state() if f"{text}/".startswith(f"{path}/")]:
                raise Explained(f"{inside[0]} is what is backed up")
            return cls("directory", text)
        url = urlsplit(text)
        if url.query or url.fragment or url.password is not None or not url.hostname:
            raise ValueError
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        TypeAdapter(Host).validate_python(url.hostname)
        if url.path and (not re.fullmatch(_PATH, url.path) or ".." in url.path.split("/") or "//" in url.path):
            raise ValueError
        if url.scheme == "sftp" and url.username and url.path and re.fullmatch(r"[A-Za-z0-9._-]+", url.username):
            return cls("sftp", url.path, host, url.port or 22, url.username)
        _, bucket, *below = url.path.split("/") if url.path else ("", "")
        if url.scheme == "s3" and url.username is None and re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            return cls("s3", "".join(f"/{part}" for part in below), host, url.port or 443, bucket=bucket)
        raise ValueError


def _target(text: str) -> str:
    Target.parse(text)
    return text


def _all_state() -> list[str]:
    return [path for role in ROLES.values() for path in role.state]


HostKey = Annotated[str, StringConstraints(pattern=r"^(ssh-|ecdsa-)[a-z0-9@.-]+ [A-Za-z0-9+/]{40,}={0,2}$")]


class Choices(Chosen):
    """The settings of the backup."""

    backup_target: Annotated[str, AfterValidator(_target)] | None = Field(
        description='a directory of another disk, such as "/mnt/backup", "sftp://user@host:22/path" or "s3://endpoint/bucket/path"'
    )
    backup_sftp_host_key: HostKey | None = Field(
        description='None or the public host key of the other machine, such as "ssh-ed25519 AAAA..."'
    )
    backup_s3_region: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")] = Field(
        description='the name of a region, such as "eu-central-1"'
    )
    backup_time: TimeOfDay = Field(description=A_TIME.format(example="03:30"))
    backup_keep_days: int = Field(description="a number of days from 1 to 3650", ge=1, le=3650)
    backup_wal_limit: Size = Field(description='a size such as "1G"')


def folder_of(machine: str) -> str:
    """Where the backups of a machine are, below the target."""
    return re.sub(r"[^A-Za-z0-9.-]", "", machine)


@dataclass(frozen=True)
class Access:
    """One target as one machine reaches it. home: the directory of its files on the machine. folder: the machine's, there."""

    home: str
    target: Target
    folder: str
    key: Secret
    region: str
    s3_access_key: Secret | None
    s3_secret_key: Secret | None
    ssh_key: Secret | None
    host_key: str | None

    @classmethod
    def of(cls, settings: Settings, home: str, target: Target, machine: str) -> Self:
        choices, vault = settings.section(Choices), settings.vault
        s3, sftp = target.kind == "s3", target.kind == "sftp"
        return cls(
            home=home,
            target=target,
            folder=folder_of(machine),
            key=vault.get("backup_encryption_key"),
            region=choices.backup_s3_region,
            s3_access_key=vault.get("backup_s3_access_key") if s3 else None,
            s3_secret_key=vault.get("backup_s3_secret_key") if s3 else None,
            ssh_key=pem(vault.get("backup_ssh_key")) if sftp else None,
            host_key=choices.backup_sftp_host_key if sftp else None,
        )

    def path(self, part: str) -> str:
        """Where a part of the backup is: "postgresql", "dumps" or "files"."""
        return f"{self.target.path}/{self.folder}/{part}"

    def repository(self, part: str) -> str:
        """The same for restic."""
        target = self.target
        if target.kind == "s3":
            return f"s3:https://{target.host}:{target.port}/{target.bucket}{self.path(part)}"
        if target.kind == "sftp":
            # The second slash is the root of the path.
            return f"sftp://{target.user}@{target.host}:{target.port}/{self.path(part)}"
        return self.path(part)

    @property
    def known_host(self) -> str:
        """The line of a known_hosts file."""
        name = self.target.host.strip("[]")
        return f"{name if self.target.port == 22 else f'[{name}]:{self.target.port}'} {self.host_key}\n"


def public_key(key: Secret) -> str:
    """The public part of the key with which the backup logs in, as a line of authorized_keys."""
    private = serialization.load_der_private_key(base64.b64decode(key.reveal()), password=None)
    line = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{line.decode()} matrix-metal backup"


@dataclass(frozen=True)
class Backup(View):
    """What is backed up on this machine, how and where to.

    cluster, port, databases: PostgreSQL's, if it is here: database -> owner and the tables that must be empty after a restore.
    state: directories -> their owner; own: those of the administrator's settings.
    """

    access: Access
    cluster: str | None
    port: int
    databases: Mapping[str, tuple[str, tuple[str, ...]]]
    state: Mapping[str, str]
    own: tuple[str, ...]
    not_backed_up: tuple[str, ...]
    sqlite: tuple[str, ...]
    keep_days: int
    wal_limit: int
    time: str
    mail: Mail
    admin_email: str | None
    server_name: str
    machine: str
    rehearsal: bool

    @classmethod
    def of(cls, settings: Settings) -> Self:
        choices = settings.section(Choices)
        assert choices.backup_target  # settings/rules.py
        return cls._of(settings, Access.of(settings, BACKUP_HOME, Target.parse(choices.backup_target), settings.name))

    @classmethod
    def to_restore(cls, settings: Settings) -> Self:
        """What to restore on this machine, and from where."""
        choices, restore = settings.section(Choices), settings.restore
        assert restore
        target = Target.parse(restore.source or choices.backup_target or "")
        return cls._of(settings, Access.of(settings, RESTORE_HOME, target, restore.machine or settings.name))

    @classmethod
    def _of(cls, settings: Settings, access: Access) -> Self:
        choices, played = settings.section(Choices), settings.played
        if access.target.kind == "sftp" and settings.here("postgres") and settings.machine.release == "12":
            raise SettingError(
                "backup_target: pgBackRest of Debian 12 knows no sftp; use a directory or s3://, or upgrade to Debian 13"
            )
        here = settings.here("postgres")
        owned = {role.name: role.units[0].user for role in played if role.state and not role.in_database and role.units}
        # What no unit has need not be in a backup: one from before there was such a thing is restored as well.
        home = MARKER.rpartition("/")[0]
        states = [path for role in played if not role.units for path in role.state]
        ownerless = [path for path in states if not path.startswith(f"{home}/")]
        own = [settings.written(path) for role in played for unit in role.units for path in unit.own]
        return cls(
            access=access,
            cluster=settings.view(Postgres).cluster if here else None,
            port=settings.view(Postgres).port if here else 0,
            databases={
                role.database.name: (role.database.owner, role.database.used_once)
                for role in ROLES.values()
                if here and role.database and settings.exists(role.name)
            },
            state={path: owned[role.name] for role in played if role.name in owned for path in role.state},
            own=(*dict.fromkeys(own), home, *ownerless),
            not_backed_up=(
                *(path for role in played for path in role.not_backed_up),
                # Written by a deploy.
                MARKER,
                KEY_NOTE,
                BACKUP_HOME,
                RESTORE_HOME,
            ),
            sqlite=tuple(path for role in played for path in role.sqlite),
            keep_days=choices.backup_keep_days,
            wal_limit=size_in_bytes(choices.backup_wal_limit),
            time=choices.backup_time,
            mail=settings.mail,
            admin_email=settings.choices.admin_email,
            server_name=settings.server_name,
            machine=settings.name,
            rehearsal=settings.restore is not None and settings.restore.rehearsal,
        )

    @classmethod
    def packages(cls, settings: Settings) -> Sequence[str]:
        target = settings.section(Choices).backup_target or ""
        source = settings.restore.source if settings.restore else None
        sftp = any(each and each.startswith("sftp:") for each in (target, source))
        return (
            *(["pgbackrest"] if settings.here("postgres") else []),
            *(["openssh-client"] if sftp else []),
        )

    @property
    def mails(self) -> bool:
        """Whether a mail is written about what fails or is late."""
        return bool(self.mail.host and self.admin_email)

    @property
    def timers(self) -> list[Timer]:
        """Those of this machine."""
        here = [timer for timer in BACKUP.timers if timer.beside is None or self.cluster]
        return [timer for timer in here if part_of(timer) != "late" or self.mails]

    @property
    def jobs(self) -> list[Timer]:
        """Those of them that write down how they went."""
        return [timer for timer in self.timers if part_of(timer) in LATE_AFTER]

    def when(self, timer: Timer) -> str:
        """When systemd starts it, as OnCalendar="""
        hour, minute = map(int, self.time.split(":"))
        later = f"{(hour + 2) % 24:02}:{minute:02}"
        return {
            "wal": "minutely",
            # With the time that it takes, five minutes are lost at most.
            "files": "*:0/4",
            "database": f"*-*-* {self.time} UTC",
            "check-database": f"Sun *-*-* {later} UTC",
            "check-files": f"Sun *-*-* {later} UTC",
            "late": "*:7/15",
        }[part_of(timer)]

    @property
    def plan(self) -> str:
        """What the program on the machine has to know; no secret."""
        access = self.access
        plan: dict[str, Any] = {
            "machine": self.machine,
            "server_name": self.server_name,
            "state_directory": BACKUP_STATE,
            "spool": SPOOL,
            "user": BACKUP_USER,
            "kind": access.target.kind,
            "target": access.target.path if access.target.kind == "directory" else None,
            "paths": {part: access.path(part) for part in ("postgresql", "dumps", "files")},
            "restic_options": self._restic_options,
            "cluster": self.cluster,
            "databases": {name: {"owner": owner, "used_once": used} for name, (owner, used) in self.databases.items()},
            "state": dict(self.state),
            "own": list(self.own),
            "not_backed_up": list(self.not_backed_up),
            "sqlite": list(self.sqlite),
            "keep_days": self.keep_days,
            "late_after": {part_of(timer): LATE_AFTER[part_of(timer)] for timer in self.jobs},
            "mail": {
                "to": self.admin_email,
                "from": self.mail.sender,
                "host": self.mail.host,
                "port": self.mail.port,
                "tls": self.mail.tls,
                "username": self.mail.username,
            }
            if self.mails
            else None,
            "rehearsal_note": REHEARSAL_NOTE if self.rehearsal else None,
        }
        return json.dumps(plan, indent=1) + "\n"

    @property
    def _restic_options(self) -> dict[str, list[str]]:
        """For each user, whose copy of the key it is."""
        if self.access.target.kind != "sftp":
            return {"files": [], "dumps": []}
        target, found = self.access.target, {}
        for part, user in (("files", "root"), ("dumps", "postgres")):
            command = (
                f"ssh -F none -i {self.access.home}/ssh_key.{user} -o IdentitiesOnly=yes -o BatchMode=yes "
                f"-o UserKnownHostsFile={self.access.home}/known_hosts -o StrictHostKeyChecking=yes -o ConnectTimeout=20 "
                f"-o ServerAliveInterval=15 -p {target.port} {target.user}@{target.host.strip('[]')} -s sftp"
            )
            found[part] = ["-o", f"sftp.command={command}"]
        return found

    @property
    def sockets(self) -> list[str]:
        """Directories with the sockets of services."""
        private = (path for role in ROLES.values() for unit in role.units for path in unit.private)
        return ["/run/caddy", *dict.fromkeys(path for path in private if path.startswith("/run/"))]

    @property
    def mail_password(self) -> Secret | None:
        return self.mail.password if self.mails else None


def part_of(timer: Timer) -> str:
    """What the program calls a timer's job."""
    return timer.name.removeprefix("matrix-metal-backup-")


# Seconds after the last success from which a part is late. That of the recovery point has to be 5 minutes.
LATE_AFTER = {
    "wal": 300,
    "files": 1800,
    "database": 26 * 3600,
    "check-database": 8 * 86400,
    "check-files": 8 * 86400,
}

VIEW = Backup
