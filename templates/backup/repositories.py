"""The repositories of the backup, as the programs beside this file reach them: pgBackRest's and restic's.

Secrets come by the environment, or from files that only root and postgres can read.
"""

import contextlib
import datetime
import grp
import json
import os
import pwd
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

BACKUP_HOME, RESTORE_HOME = "/etc/matrix-metal/backup", "/etc/matrix-metal/restore"
# Of restic. The second is postgres'.
CACHES = "/var/cache/matrix-metal-backup", "/var/cache/matrix-metal-backup-database"
DAY = 24 * 60 * 60
# Seconds after which restic is taken to hang, as it does when packets are lost for ever; the first backup may take a day.
PATIENCE = 4 * 60 * 60
# Beside the copies of databases.
IDS = "ids.json"
DAMAGED = "(what is at the target is damaged: see docs/BACKUP.md)"


class Problem(Exception):
    """Why a job failed, in one line."""


class Plan:
    """What a deploy has written down about the backup (plan.json in the home)."""

    machine: str
    server_name: str
    state_directory: str
    spool: str
    user: str
    target: str | None
    paths: dict[str, str]
    restic_options: dict[str, list[str]]
    cluster: str | None
    databases: dict[str, Any]
    state: dict[str, str]
    own: list[str]
    not_backed_up: list[str]
    sqlite: list[str]
    keep_days: int
    late_after: dict[str, int]
    mail: dict[str, Any]
    rehearsal_note: str | None

    def __init__(self, home: str) -> None:
        self.home = Path(home)
        self.__dict__ |= json.loads((self.home / "plan.json").read_text())
        self.directory = Path(self.state_directory)

    def of(self, part: str) -> Path:
        """Where the jobs of "files" or "database" keep what they know."""
        return self.directory / part

    def environment(self, part: str) -> dict[str, str]:
        """Of restic: by systemd's EnvironmentFile= in a job, read here otherwise."""
        if "RESTIC_REPOSITORY" in os.environ:
            return dict(os.environ)
        lines = (self.home / f"{part}.env").read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
        return {**os.environ, **{name: value.strip('"') for name, value in given.items()}}


def begin() -> None:
    """What a program of these does first."""
    os.environ |= {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    signal.signal(signal.SIGTERM, _stopped)
    os.chdir("/")


def _stopped(*_: object) -> None:
    raise Problem("it was stopped before it had ended")


def reason_of(error: Exception) -> str:
    return str(error) if isinstance(error, Problem) else f"{type(error).__name__}: {error}"


def replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}")
    partial.write_text(text)
    partial.chmod(0o644)
    partial.replace(file)


def at(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ids() -> dict[str, dict[str, str]]:
    """The numbers of users and groups, as keys, with their names."""
    return {
        "users": {str(each.pw_uid): each.pw_name for each in pwd.getpwall()},
        "groups": {str(each.gr_gid): each.gr_name for each in grp.getgrall()},
    }


# --- pgBackRest -----------------------------------------------------------------------------------


def pgbackrest_command(plan: Plan, *words: str) -> list[str]:
    return as_postgres(["pgbackrest", f"--config={plan.home}/pgbackrest.conf", "--stanza=main", *words])


OTHER_KEY = " (is backup_encryption_key in the vault the one that the backup was made with?)"


def pgbackrest(plan: Plan, *words: str, timeout: float | None = None) -> str:
    command = pgbackrest_command(plan, *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, errors="replace")
    except subprocess.TimeoutExpired:
        raise Problem(f"pgbackrest {words[-1]} has not ended after {timeout:.0f} s: is the target away?") from None
    if done.returncode:
        raise Problem(why_pgbackrest(done.stdout + done.stderr) or f"pgbackrest ended with status {done.returncode}")
    return done.stdout


def why_pgbackrest(output: str, key_is_right: bool = False) -> str:
    """key_is_right: something of the repository could be read with it before."""
    lines = output.splitlines()
    errors = [number for number, line in enumerate(lines) if re.search(r"ERROR: \[\d+\]: ", line)]
    if not errors:
        return " ".join(line.strip() for line in lines[-2:])
    first = re.sub(r"^.*?ERROR: (\[\d+\]: .*)$", r"\1", lines[errors[0]])
    # What belongs to it is in the lines below, which are indented.
    for line in lines[errors[0] + 1 :]:
        if not line.startswith("    "):
            break
        first += f" {line.strip()}"
    first = first[:500]
    if key_is_right and re.search(r"(?i)CryptoError|FormatError|unexpected (eof|end)|expected checksum", first):
        first += f" {DAMAGED}"
    elif re.search(
        r"^\[(025|029|095)\].*(key/value found|cipher|decrypt|checksum|unable to load info)|unable to flush", first
    ):
        first += OTHER_KEY
    if first.startswith("[028]") or first.startswith("[051]"):
        first += " (it is the backup of another database: restore it, or choose another path)"
    return f"pgBackRest: {first}"


def as_postgres(command: list[str]) -> list[str]:
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


def info(plan: Plan) -> dict[str, Any]:
    """What pgBackRest knows about its backups."""
    # With another key there are control characters in its messages, which JSON does not allow: what it has decrypted.
    found = json.loads(pgbackrest(plan, "--output=json", "info"), strict=False)
    if not found or found[0]["status"]["code"] not in (0, 2):
        status = [found[0]["status"], *(each["status"] for each in found[0].get("repo", ()))] if found else []
        messages = [
            re.sub(r"(?s)(key/value found outside of section).*", r"\1", str(each["message"])) for each in status
        ]
        why = "; ".join(" ".join(message.split()) for message in messages) or "nothing is there"
        other = OTHER_KEY if re.search("CryptoError|key/value found|is or was the repo encrypted", why) else ""
        raise Problem(f"the target shows no backup of a database: {why[:300]}{other}")
    return dict(found[0])


def psql(plan: Plan, program: str, *words: str) -> list[str]:
    """The command of a client of PostgreSQL's, as its superuser."""
    environment = ["env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", f"PGCLUSTER={plan.cluster}"]
    return as_postgres([*environment, program, *words])


# --- restic ---------------------------------------------------------------------------------------


def restic_command(plan: Plan, part: str, *words: str) -> tuple[list[str], dict[str, str]]:
    """The command, and its environment. A restore writes nothing to the target, not even a lock."""
    reading = ["--no-lock"] if str(plan.home) == RESTORE_HOME else []
    command, environment = ["restic", "--json", *reading, *plan.restic_options[part], *words], plan.environment(part)
    cache = os.environ.get("CACHE_DIRECTORY")
    environment["RESTIC_CACHE_DIR"] = cache or CACHES[part != "files"]
    if part == "dumps" and os.geteuid() == 0:
        # It keeps the environment.
        command = as_postgres(command)
        environment["HOME"] = "/var/lib/postgresql"
    else:
        environment.setdefault("HOME", "/root")
    # Otherwise it says sixty times a second how far it is.
    environment["RESTIC_PROGRESS_FPS"] = "0.01"
    return command, environment


def restic(plan: Plan, part: str, *words: str, source: IO[bytes] | None = None) -> str:
    done = _run_restic(plan, part, words, source)
    if done.returncode and "already locked" in done.stderr:
        # A job that was killed has left its lock, which would stay for ever. One that is in use is not removed. Nothing of the
        # source was read yet.
        _run_restic(plan, part, ("unlock",))
        done = _run_restic(plan, part, words, source)
    if done.returncode == 3 and words[0] == "backup" and only_vanished(done.stderr):
        return done.stdout
    if done.returncode:
        raise Problem(why_restic(done.returncode, done.stderr))
    return done.stdout


def _run_restic(
    plan: Plan, part: str, words: Sequence[str], source: IO[bytes] | None = None
) -> "subprocess.CompletedProcess[str]":
    command, environment = restic_command(plan, part, *words)
    patience = PATIENCE if (plan.of("files") / "pruned").exists() else DAY
    try:
        return subprocess.run(
            command,
            stdin=source or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        raise Problem(
            f"restic {words[0]} has not ended after {patience / 3600:.0f} hours: is the target away?"
        ) from None


def only_vanished(errors: str) -> bool:
    """Whether all that restic could not read is gone: files come and go while it reads."""
    found = map(parsed, errors.splitlines())
    items = [each.get("item", "") for each in found if each.get("message_type") == "error"]
    return bool(items) and not any(os.path.lexists(item) for item in items)


def why_restic(status: int, errors: str) -> str:
    lines = [_message(line) for line in errors.splitlines() if line.strip()]
    text = " ".join(lines)
    if "wrong password" in text:
        return "backup_encryption_key in the vault is not the key that this backup was made with"
    if status == 10 or "Is there a repository" in text:
        return f"the target has no backup where it should be ({text.splitlines()[0][:200]}): is the disk mounted?"
    if damage := [line for line in lines if _DAMAGE.search(line)]:
        return f"restic: {damage[0][:400]} {DAMAGED}"
    return f"restic: {(' '.join(lines[-2:]) or f'status {status}')[:500]}"


# What its messages have in common about files of a repository that are not what was written.
_DAMAGE = re.compile(
    r"(?i)unexpected (file size|EOF)|too short|verification failed|invalid data|hash mismatch|pack \w+: .*not exist"
)


def _message(line: str) -> str:
    """What a line of restic's errors says, with the file that it is about."""
    found = parsed(line)
    error = found.get("error")
    if isinstance(error, dict) and error.get("message"):
        return ": ".join(str(each) for each in (found.get("item"), error["message"]) if each)
    return str(found.get("message") or line).strip()


def parsed(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {}
