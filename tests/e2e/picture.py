"""What a machine has, as lines that can be compared with those of another time."""

from tests.testbed import Host

# Files that change by themselves, or tell of the past: logs, caches, backups, what systemd, apt, dpkg and their daily jobs note,
# data of services that stay.
_VOLATILE = (
    "/etc/.pwd.lock",
    "/etc/ld.so.cache",
    "/run/adduser",
    "/run/fail2ban",
    "/run/log",
    "/run/matrix-metal",
    "/run/needrestart",
    "/run/systemd",
    "/run/udev",
    "/run/unattended-upgrades.lock",
    "/run/user",
    "/var/backups",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/caddy/.local/share/caddy/locks",
    "/var/lib/dpkg",
    "/var/lib/logrotate",
    "/var/lib/matrix-metal-housekeeping",
    "/var/lib/matrix-metal/last_deploy.json",
    "/var/lib/matrix-synapse",
    "/var/lib/postgresql",
    "/var/lib/systemd",
    "/var/lib/ucf",
    # What is in these, but not they themselves.
    *(f"'/var/lib/{name}/?*'" for name in ("matrix-alertmanager", "matrix-metal-figures", "matrix-prometheus")),
    "/var/log",
    "/var/tmp",  # noqa: S108
)
# Units that come and go by themselves.
_OTHERS = "|".join(
    (
        "user@|user-runtime-dir@|session|run-|sshd@|ssh@",
        "systemd-|emergency|rescue",
        "apt-daily|dpkg-db-backup|e2scrub|fstrim",
    )
)
# Their lines are compared as users and groups.
_ACCOUNTS = tuple(f"/etc/{name}{old}" for name in ("passwd", "group", "shadow", "gshadow") for old in ("", "-"))

# What their timers start when they like: on a busy machine it takes a minute.
_JOBS = ("matrix-metal-housekeeping.service", "matrix-metal-figures.service")

_PICTURE = r"""
find /etc /opt /root /run /usr /var -xdev \( PRUNED \) -prune -o -printf 'file %p %y %m %u:%g %l\n' |
  sed -E 's/(\.sock\.lock l .*) [0-9]+$/\1/'
find /etc /root /usr/local /var/lib/matrix-metal -xdev \( PRUNED -o HASHED \) -prune -o -type f -exec sha256sum {} + |
  sed 's/^\(.*\)  \(.*\)$/content \2 \1/'
getent passwd | sed 's/^/user /'
getent group | sed 's/^/group /'
systemctl list-unit-files --no-legend --plain | grep -v '^session-' | awk '{ print "unit-file", $1, $2 }'
systemctl list-units --all --no-legend --plain --type service,path,timer,socket |
  awk '{ print "unit", $1, $2, ($1 in at_work ? "" : $3) } BEGIN { JOBS }' |
  grep -vE '^unit (OTHERS)'
systemctl list-units --failed --no-legend --plain | awk '{ print "failed", $1 }'
ss -Hlntup | sed -E 's/^([a-z]+) .* ([^ ]+:[0-9]+) +[^ ]+ +users:\(\("([^"]*)".*/listener \1 \2 \3/'
dpkg-query --show --showformat 'package ${Package} ${Version} ${db:Status-Abbrev}\n'
apt-mark -o Dir::State::lists=/nonexistent -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= showmanual | sed 's/^/manual /'
cd / && ! command -v psql >/dev/null || runuser -u postgres -- psql -XAtqc "
  SELECT 'database', datname, pg_get_userbyid(datdba), datacl FROM pg_database UNION ALL
  SELECT 'role', rolname, '', NULL FROM pg_roles"
! command -v nft >/dev/null || nft -s -t list ruleset | sed 's/^/nft /'
"""


def picture(host: Host) -> set[str]:
    """A line for each thing that the machine has."""
    pruned = " -o ".join(f"-path {path}" for path in _VOLATILE)
    hashed = " -o ".join(f"-path {path}" for path in _ACCOUNTS)
    script = _PICTURE.replace("PRUNED", pruned).replace("HASHED", hashed).replace("OTHERS", _OTHERS)
    script = script.replace("JOBS", "; ".join(f'at_work["{job}"]' for job in _JOBS))
    return set(host.run("sh -s", stdin=script, timeout=120).stdout.splitlines())


def difference(before: set[str], after: set[str]) -> list[str]:
    """What one has and the other has not."""
    return sorted([*(f"- {line}" for line in before - after), *(f"+ {line}" for line in after - before)])
