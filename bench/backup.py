"""How long a backup and a restore of a large homeserver take and how much they store, and what archiving costs its database.

The target is a directory of the host itself: another machine adds the time of the network. Rows of the database compress as
events do, media do not compress at all. What grows with the data is reckoned for 10 GB of each.

Transactions are pgbench's, in rounds with PostgreSQL's log archived and sent, and without, in turns.
"""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.figures import Figure
from bench.trial import fresh_host, load, say
from tests.deployment import Deployment
from tests.e2e.storage import lose_data
from tests.testbed import Host

ROLES = ("postgres", "synapse", "caddy", "backup")
TARGET, MEDIA = "/srv/backup", "/var/lib/matrix-synapse/media/local_content"
# What is reckoned, in MiB.
LARGE = 10_000_000_000 / (1 << 20)
CLIENTS, ROUNDS = 4, 5
# A row of a KiB or so: words that repeat, and as much that does not, as in an event with its hashes and signatures.
FILL = """
CREATE TABLE bench AS SELECT number, '{{"type": "m.room.message", "sender": "@somebody:bench.test", "hashes": "' ||
  (SELECT string_agg(encode(sha512((number || ' ' || part)::text::bytea), 'base64'), ' ') FROM generate_series(1, 5) part) ||
  '", "content": {{"msgtype": "m.text", "body": "' || repeat('a message of some words ', 15) || '"}}}}' AS json
FROM generate_series(1, {rows}) number;
CHECKPOINT;
"""
FILES = """
install -d -m 750 -o matrix-synapse -g matrix-synapse {media}/aa
for number in $(seq {count}); do head -c 1048576 /dev/urandom >{media}/aa/$number; done
chown -R matrix-synapse: {media}
"""
PGBENCH = "/usr/lib/postgresql/*/bin/pgbench"


class Failed(Exception):
    """Not everything was backed up and restored: the figure would mean something else."""


def measure(mebibytes: int, seconds: int) -> Iterator[Figure]:
    """mebibytes: of database and of media. seconds: of each round of transactions."""
    with fresh_host("bench-backup") as host, TemporaryDirectory(prefix="bench-") as directory:
        deployment = Deployment(
            Path(directory),
            [host],
            {
                "server_name": host.domain,
                "tls": "internal",
                "private_networks": [str(host.bed.network.subnet), str(host.bed.network.subnet6)],
                "backup_target": TARGET,
            },
            roles={role: [host.name] for role in ROLES},
        )
        host.run(f"mkdir {TARGET}")
        say(f"deploying to {host.name}")
        deployment.run("-y")
        _manage(deployment, "backup", "now")
        yield from _archiving(host, seconds)
        say(f"making {mebibytes} MiB of database and as much of media")
        _sql(host, FILL.format(rows=mebibytes * 1024), timeout=3600)
        host.run(FILES.format(media=MEDIA, count=mebibytes), timeout=3600)
        host.run("systemctl stop 'matrix-metal-backup-*.timer'")
        yield from _backup(host, mebibytes)
        _manage(deployment, "backup", "now")
        lose_data(host)
        say(f"restoring; {load()}")
        begin = time.monotonic()
        _manage(deployment, "restore", "--yes")
        whole, data = time.monotonic() - begin, _seconds_of_data(host)
        if int(_sql(host, "SELECT count(*) FROM bench")) != mebibytes * 1024:
            raise Failed("not every row was restored")
        if int(host.run(f"ls {MEDIA}/aa | wc -l").stdout) != mebibytes:
            raise Failed("not every file was restored")
        yield Figure("restore: all, but for what was installed", [whole], "s")
        yield Figure("restore: the data", [data], "s")
        yield Figure("restore: the data, reckoned for 10 GB of each", [data * LARGE / mebibytes], "s")


def _backup(host: Host, mebibytes: int) -> Iterator[Figure]:
    # A full backup, as the first one is; the job would make a small one.
    full = "pgbackrest --config=/etc/matrix-metal/backup/pgbackrest.conf --stanza=main --type=full backup"
    commands = {
        # It waits for the log of what happened meanwhile, which the job would send.
        "database": (
            "(while sleep 0.5; do systemctl start matrix-metal-backup-wal; done) >/dev/null 2>&1 & "
            f"sending=$!; cd / && runuser -u postgres -- {full}; status=$?; kill $sending; exit $status"
        ),
        "files": "systemctl start matrix-metal-backup-files",
    }
    for part, command in commands.items():
        before = _stored(host)
        begin = time.monotonic()
        host.run(command, timeout=3600)
        seconds = time.monotonic() - begin
        say(f"{part} backed up; {load()}")
        yield Figure(f"backup: {part}", [seconds], "s")
        yield Figure(f"backup: {part}, reckoned for 10 GB", [seconds * LARGE / mebibytes], "s")
        yield Figure(f"backup: {part}, stored for each 100 MB", [100 * (_stored(host) - before) / mebibytes], "%")


def _archiving(host: Host, seconds: int) -> Iterator[Figure]:
    """Transactions with and without."""
    configuration = host.run("ls /etc/postgresql/*/main/conf.d/matrix-metal.conf").stdout.strip()
    host.run(f"cp -a {configuration} /root/archived")
    _as_postgres(host, "createdb bench")
    _as_postgres(host, f"{PGBENCH} -q -i -s 20 bench", timeout=600)
    rates: dict[str, list[float]] = {"with archiving": [], "without archiving": []}
    for turn in range(ROUNDS):
        for way in rates if turn % 2 else reversed(rates):
            archived = way == "with archiving"
            command = "" if archived else r"s/^archive_command.*/archive_command = \x27\/bin\/true\x27/"
            host.run(
                f"sed '{command}' /root/archived >{configuration} && systemctl reload 'postgresql@*'; "
                f"systemctl {'start' if archived else 'stop'} matrix-metal-backup-wal.timer"
            )
            shown = _as_postgres(host, f"{PGBENCH} -n -c {CLIENTS} -T {seconds} bench", timeout=seconds + 120)
            rate = re.search(r"^tps = ([\d.]+)", shown, re.MULTILINE)
            if not rate:
                raise Failed(f"pgbench says nothing:\n{shown}")
            rates[way].append(float(rate[1]))
    host.run(f"mv /root/archived {configuration} && systemctl reload 'postgresql@*'")
    host.run("systemctl start matrix-metal-backup-wal matrix-metal-backup-wal.timer", timeout=600)
    _as_postgres(host, "dropdb bench")
    say(f"transactions measured; {load()}")
    for way, found in rates.items():
        yield Figure(f"transactions {way}", found, "1/s")
    pairs = zip(*rates.values(), strict=True)
    yield Figure("transactions: with / without archiving, median of the pairs", [one / other for one, other in pairs])


def _seconds_of_data(host: Host) -> float:
    """From the beginning of the restore's unit to its end."""
    shown = host.run("journalctl -u matrix-metal-restore -o short-unix --no-pager").stdout
    times = [float(line.split()[0]) for line in shown.splitlines() if "systemd[1]" in line]
    if len(times) < 2:
        raise Failed(f"the journal does not say how long the restore took:\n{shown}")
    return times[-1] - times[0]


def _stored(host: Host) -> float:
    """MiB at the target."""
    return int(host.run(f"du -sk {TARGET}").stdout.split()[0]) / 1024


def _manage(deployment: Deployment, *arguments: str) -> None:
    done: subprocess.CompletedProcess[str] = deployment.manage(*arguments)
    if done.returncode:
        raise Failed(f"{' '.join(arguments)}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _as_postgres(host: Host, command: str, timeout: float = 60) -> str:
    return host.run(f"cd / && runuser -u postgres -- {command}", timeout=timeout).stdout


def _sql(host: Host, sql: str, timeout: float = 60) -> str:
    command = "cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d synapse"
    return host.run(command, stdin=sql, timeout=timeout).stdout.strip()
