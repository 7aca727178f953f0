"""How much memory the services take when they are idle."""

import json
import secrets
import shlex
import time
from collections.abc import Iterable, Iterator
from typing import Any

from bench.figures import Figure
from bench.trial import say
from roles import SYNAPSE_PORT, Role
from settings.postgres import OF_DEBIAN
from tests.deployment import EVERYTHING
from tests.testbed import RELEASES, Host

IDLE = 60  # seconds

# Proportional set size: a process's private memory, and its share of the memory that it shares with others. So PostgreSQL's
# shared buffers count once, and the sum over all processes is what they take together. In KiB, one sum per unit.
SCRIPT = r"""
for unit in "$@"; do
  group=$(systemctl show -p ControlGroup --value "$unit")
  [ -n "$group" ] || { echo "$unit does not run" >&2; exit 1; }
  find "/sys/fs/cgroup$group" -name cgroup.procs -exec cat {} + | while read -r process; do
    cat "/proc/$process/smaps_rollup"
  done | awk -v unit="$unit" '/^Pss:/ { sum += $2 } END { print unit, sum }'
done
"""


def measure(host: Host) -> Iterator[Figure]:
    """host: one with every role of EVERYTHING."""
    _use_homeserver(host)
    yield from sizes(host, EVERYTHING.values(), IDLE, f"memory when idle, {host.release}")


def sizes(host: Host, roles: Iterable[Role], idle: float, name: str) -> Iterator[Figure]:
    """The memory of each unit of the roles, and the sum under this name, after so many seconds without requests."""
    say(f"{host.name} ({host.release}) idles for {idle:.0f} s")
    time.sleep(idle)
    version = OF_DEBIAN[str(RELEASES[host.release])]
    units = [unit.name.format(version=version) for role in roles for unit in role.units]
    shown = host.run(f"sh -euc {shlex.quote(SCRIPT)} sh {' '.join(units)}").stdout
    found = {unit: int(size) / 1024 for unit, size in map(str.split, shown.splitlines())}
    for unit in units:
        yield Figure(f"    {unit.removesuffix('.service')}", [found[unit]], "MiB")
    yield Figure(name, [sum(found.values())], "MiB")


def _use_homeserver(host: Host) -> None:
    """One user logs in, creates a room and sends a message, so that Synapse has loaded what every homeserver needs."""
    password = secrets.token_urlsafe()
    host.run(
        "/opt/matrix-synapse/current/bin/register_new_matrix_user -c /etc/matrix-synapse/homeserver.yaml "
        f"--user bench --password {password} --no-admin http://127.0.0.1:{SYNAPSE_PORT}"
    )
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "bench"}, "password": password}
    token = _call(host, "POST", "login", login)["access_token"]
    room = _call(host, "POST", "createRoom", {"preset": "private_chat"}, token)["room_id"]
    message = {"msgtype": "m.text", "body": "Is anybody there?"}
    _call(host, "PUT", f"rooms/{room}/send/m.room.message/1", message, token)


def _call(host: Host, method: str, path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
    url = f"https://matrix.{host.domain}/_matrix/client/v3/{path}"
    headers = ["-H", f"Authorization: Bearer {token}"] if token else []
    answer = host.run(
        shlex.join(["curl", "-sS", "--fail-with-body", "-X", method, *headers, "-d", "@-", url]), stdin=json.dumps(body)
    )
    result: dict[str, Any] = json.loads(answer.stdout)
    return result
