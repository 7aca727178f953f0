"""Running a deployment again: a second run changes nothing, drift is repaired, interrupted runs are completed."""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roles import Unit
from tests.conftest import Deployed, complete
from tests.deployment import EVERYTHING, ROOT, Deployment, Run
from tests.e2e.test_refusals import assert_refused
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import SECRETS, Vault

UNITS = " ".join(unit.name.format(version="*") for role in EVERYTHING.values() for unit in role.units)


def short(unit: Unit) -> str:
    """Its name without version and suffix."""
    return unit.name.partition(".")[0].partition("@")[0]


RUN = {short(unit): f"Run {role.title_of(unit)}" for role in EVERYTHING.values() for unit in role.units}
# In the order of deploy.py.
IN_ORDER = [
    RUN[short(unit)]
    for role in re.findall(r"tasks/(\w+)\.py", (ROOT / "deploy.py").read_text())
    if role in EVERYTHING
    for unit in EVERYTHING[role].units
]
HEALTH = {short(unit): unit.health for role in EVERYTHING.values() for unit in role.units}


def invocations(host: Host) -> dict[str, str]:
    """Unit -> its invocation ID, which systemd gives to every start, and its state."""
    shown = host.run(f"systemctl show {UNITS} -p Id -p InvocationID -p ActiveState").stdout
    started = {}
    for block in shown.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines())
        started[values["Id"].partition(".")[0].partition("@")[0]] = values["InvocationID"] + values["ActiveState"]
    return started


def restarted(before: dict[str, str], host: Host) -> set[str]:
    after = invocations(host)
    return {unit for unit in after if after[unit] != before.get(unit)}


def assert_nothing_to_do(deployment: Deployment) -> Run:
    """Neither a run nor a dry run finds anything to change. The run."""
    again = deployment.run("-y")
    assert again.changed == []
    totals = again.results["results"]["totals"]
    # It did reach the machine: otherwise it would change nothing either.
    assert totals["no_change"] > len(RUN) and totals["error"] == 0
    assert deployment.run().planned == []
    return again


def assert_all_answer(host: Host) -> None:
    for unit, check in HEALTH.items():
        assert host.run(check, check=False).returncode == 0, f"{unit} does not answer"


def test_second_run_changes_nothing(deployed: Deployed) -> None:
    before = invocations(deployed.host)
    assert set(before) == set(RUN)
    output = assert_nothing_to_do(deployed.deployment).output
    assert "--> nothing is backed up: no machine has the role backup, see docs/BACKUP.md\n" in output
    assert restarted(before, deployed.host) == set()


# --- drift ----------------------------------------------------------------------------------------


@pytest.mark.once("debian13")
@pytest.mark.parametrize(
    ("unit", "path", "operation"),
    [
        ("postgresql", "/etc/postgresql/*/main/conf.d/matrix-metal.conf", "Configure PostgreSQL"),
        ("caddy", "/etc/caddy/Caddyfile", "Configure Caddy"),
        ("coturn", "/etc/turnserver.conf", "Configure coturn"),
        ("matrix-synapse", "/etc/matrix-synapse/homeserver.yaml", "Configure Synapse"),
        ("sydent", "/etc/sydent/sydent.conf", "Configure Sydent"),
        ("sliding-sync", "/etc/sliding-sync/environment", "Configure the Sliding Sync proxy"),
        ("livekit", "/etc/livekit/livekit.yaml", "Configure LiveKit"),
        ("lk-jwt", "/etc/lk-jwt/environment", "Configure lk-jwt-service"),
    ],
)
def test_edited_file_is_restored_and_its_unit_uses_it(deployed: Deployed, unit: str, path: str, operation: str) -> None:
    host = deployed.host
    before, content = invocations(host), host.run(f"sha256sum {path}").stdout
    host.run(f"echo '# edited by hand' >> $(ls {path})")

    assert deployed.deployment.run("-y").changed == [operation, RUN[unit]]

    assert host.run(f"sha256sum {path}").stdout == content
    # Caddy reloads its file without a restart: connections are kept.
    assert restarted(before, host) == (set() if unit == "caddy" else {unit})
    assert host.run(HEALTH[unit], check=False).returncode == 0


@pytest.mark.once("debian13")
def test_modes_and_owners_of_secrets_are_restored(deployed: Deployed) -> None:
    host = deployed.host
    secrets = (
        "/etc/matrix-synapse/secrets/form_secret /etc/matrix-synapse/conf.d/email.yaml /etc/sydent/sydent.conf "
        "/etc/sliding-sync/environment /etc/turnserver.conf /etc/matrix-synapse/secrets /etc/sydent"
    )
    modes = host.run(f"stat -c '%a %U %G %n' {secrets}").stdout
    host.run(f"chmod o+rx {secrets}; chown nobody /etc/turnserver.conf")
    changed = deployed.deployment.run("-y").changed
    assert host.run(f"stat -c '%a %U %G %n' {secrets}").stdout == modes
    assert {name for name in changed if name not in RUN.values()} == {
        "Configure coturn",
        "Configure Synapse",
        "Configure Sydent",
        "Configure the Sliding Sync proxy",
    }


@pytest.mark.once("debian12")
def test_stopped_units_are_started(deployed: Deployed) -> None:
    host = deployed.host
    host.run(f"systemctl stop coturn-certificate.path {UNITS}")
    changed = deployed.deployment.run("-y").changed
    assert sorted(changed) == sorted([*RUN.values(), "Watch coturn's certificate"])
    assert_all_answer(host)


@pytest.mark.once("debian13")
def test_disabled_unit_is_enabled(deployed: Deployed) -> None:
    host = deployed.host
    before = invocations(host)
    host.run("systemctl disable --quiet matrix-synapse.service")
    assert deployed.deployment.run("-y").changed == ["Run Synapse"]
    assert host.run("systemctl is-enabled matrix-synapse.service").stdout.strip() == "enabled"
    assert restarted(before, host) == set(), "Synapse was restarted needlessly"


def test_edited_unit_definitions_are_repaired_and_used(deployed: Deployed) -> None:
    host = deployed.host
    before = invocations(host)
    drop_ins = "/etc/systemd/system/caddy.service.d/override.conf /etc/systemd/system/coturn.service.d/override.conf"
    host.run(f"for file in {drop_ins}; do echo 'LimitCORE=1' >> $file; done")
    host.run("echo '[Service]\nExecStart=/bin/false' > /etc/systemd/system/sydent.service")
    changed = deployed.deployment.run("-y").changed
    assert sorted(changed) == sorted(
        ["Confine Caddy", "Run Caddy", "Confine coturn", "Run coturn", "Confine Sydent", "Run Sydent"]
    )
    assert restarted(before, host) == {"caddy", "coturn", "sydent"}
    shown = host.run("systemctl show caddy coturn sydent -p NeedDaemonReload -p LimitCORE").stdout
    assert "NeedDaemonReload=yes" not in shown
    assert "LimitCORE=1\n" not in shown
    assert_all_answer(host)


@pytest.mark.once("debian13")
def test_edited_service_behind_a_path_unit_is_repaired_and_used(deployed: Deployed) -> None:
    host = deployed.host
    host.run("echo 'LimitCORE=1' >> /etc/systemd/system/coturn-certificate.service && systemctl daemon-reload")
    assert deployed.deployment.run("-y").changed == ["Reload coturn on renewal", "Watch coturn's certificate"]
    shown = host.run("systemctl show coturn-certificate.service -p NeedDaemonReload -p LimitCORE").stdout
    assert "NeedDaemonReload=yes" not in shown
    assert "LimitCORE=1\n" not in shown
    assert_nothing_to_do(deployed.deployment)


def test_systemd_reads_its_units_again_only_if_one_changed(deployed: Deployed) -> None:
    host, drop_in = deployed.host, "/etc/systemd/system/sydent.service.d"

    def reads_after_a_restart() -> int:
        host.run("touch /etc/sydent/sydent.conf")
        assert deployed.deployment.run("-y").changed == ["Run Sydent"]
        return int(host.run("journalctl -b -o cat _PID=1 | grep -c '^Reloading[.]'").stdout)

    before = reads_after_a_restart()
    assert reads_after_a_restart() == before
    try:
        # The first of a unit that is loaded is what Debian 12's systemd does not see by itself.
        host.run(f"mkdir {drop_in}; printf '[Service]\nLimitCORE=1\n' >{drop_in}/own.conf")
        assert reads_after_a_restart() == before + 1
        assert host.run("systemctl show sydent -P LimitCORE").stdout == "1\n"
    finally:
        host.run(f"rm -r {drop_in}; systemctl daemon-reload")
    assert_nothing_to_do(deployed.deployment)


def test_a_new_unit_is_started_without_reading_all_units_again(deployed: Deployed) -> None:
    host, path, unit = deployed.host, "coturn-certificate.path", "sydent.service"
    host.run(
        f"systemctl disable --quiet --now {path} {unit}; cd /etc/systemd/system; rm {path} {unit}; systemctl daemon-reload"
    )
    counted = "journalctl -b -o cat _PID=1 | grep -c '^Reloading[.]'"
    before = host.run(counted).stdout
    assert deployed.deployment.run("-y").changed == [
        *("Reload coturn on renewal", "Watch coturn's certificate"),
        *("Confine Sydent", "Run Sydent"),
    ]
    assert host.run(counted).stdout == before
    shown = host.run(
        f"systemctl show {path} {unit} -P LoadState -P ActiveState -P UnitFileState -P NeedDaemonReload"
    ).stdout
    assert shown.split() == ["loaded", "active", "enabled", "no"] * 2
    assert_nothing_to_do(deployed.deployment)


def test_systemd_understands_every_line_of_our_units(deployed: Deployed) -> None:
    """It ignores the others, and Debian 12's knows fewer than Debian 13's."""
    ours = "grep -rls '^# Written by matrix-metal' /etc/systemd/system --include=*.service --include=*.path --include=*.conf"
    names = f"{ours} | sed 's,^/etc/systemd/system/,,; s,[.]d/.*,,' | sort -u"
    done = deployed.host.run(f"{names}; systemd-analyze verify --man=no $({names}) 2>&1 || true").stdout
    assert {unit.name for role in EVERYTHING.values() for unit in role.units if "{" not in unit.name} <= set(
        done.split()
    )
    assert [line for line in done.splitlines() if "/etc/systemd/system" in line] == []


@pytest.mark.once("debian13")
def test_a_damaged_virtualenv_is_built_again_before_its_unit_is_started(deployed: Deployed) -> None:
    host = deployed.host
    host.run(": > $(ls /opt/sydent/current/lib/python3*/site-packages/sydent/sydent.py)")
    # The program that runs is not stopped for it.
    assert deployed.deployment.run("-y").changed == []
    host.run("systemctl restart sydent; systemctl stop sydent")

    assert deployed.deployment.run("-y").changed == ["Run Sydent"]
    assert host.run(HEALTH["sydent"], check=False).returncode == 0


@pytest.mark.once("debian13")
def test_removed_users_and_groups_are_restored_with_their_ids(deployed: Deployed) -> None:
    """One whose service is stopped, and the group of one whose service runs."""
    host = deployed.host
    ids = "getent passwd sydent matrix-synapse | cut -d: -f1-4; getent group sydent matrix-synapse"
    before, started = host.run(ids).stdout, invocations(host)
    host.run("systemctl stop sydent; userdel sydent; groupdel -f matrix-synapse")

    changed = deployed.deployment.run("-y").changed

    assert changed == ["Restore system users that were removed", "Run Sydent"]
    assert host.run(ids).stdout == before and restarted(started, host) == {"sydent"}
    assert host.run(HEALTH["sydent"], check=False).returncode == 0


@pytest.mark.once("debian13")
def test_what_units_run_with_is_restored_without_a_restart(deployed: Deployed) -> None:
    """Groups that several of them share, or that Debian's package makes; and a user who has no files. Their IDs are kept."""
    host = deployed.host
    ids = "getent passwd sliding-sync | cut -d: -f3; getent group matrix-sockets turnserver"
    before, started = host.run(ids).stdout, invocations(host)
    host.run("userdel -f sliding-sync 2>/dev/null; groupdel -f turnserver; groupdel -f matrix-sockets; true")
    assert host.run(ids, check=False).stdout == ""

    assert deployed.deployment.run("-y").changed == ["Restore system users that were removed"]

    assert host.run(ids).stdout == before and restarted(started, host) == set()
    host.run("systemctl restart coturn sliding-sync")
    assert_all_answer(host)
    assert deployed.deployment.run("-y").changed == []


@pytest.mark.once("debian12")
def test_files_of_another_user_id_get_the_user_that_there_is(deployed: Deployed) -> None:
    """As on a machine whose data came from another one."""
    host = deployed.host
    host.run("systemctl stop sydent; chown -R 4711:4711 /var/lib/sydent")
    assert deployed.deployment.run("-y").changed == ["Restore system users that were removed", "Run Sydent"]
    assert host.run("find /var/lib/sydent ! -user sydent -o ! -group sydent").stdout == ""
    assert host.run(HEALTH["sydent"], check=False).returncode == 0


# --- two runs at the same time --------------------------------------------------------------------

LOCK = "/run/matrix-metal/run"


@pytest.mark.once("debian13")
def test_second_run_at_the_same_time_is_refused_and_a_dead_one_is_no_obstacle(deployed: Deployed) -> None:
    host, deployment = deployed.host, deployed.deployment
    other = Deployment(
        deployment.directory, [host], {}, {role: [host.name] for role in EVERYTHING}, user="admin", name="other"
    )
    other.environment |= deployment.environment
    settings = deployment.directory / "group_data"
    (settings / "other.py").write_text((settings / f"{deployment.name}.py").read_text())
    host.run("echo '# edited by hand' >> /etc/sydent/sydent.conf")
    before, edited = invocations(host), host.run("sha256sum /etc/sydent/sydent.conf").stdout

    first = deployment.start("-y")
    try:
        host.run(f"until [ -e {LOCK} ] && ! flock -n -s {LOCK} true; do sleep 0.02; done", timeout=60)
        first.send_signal(signal.SIGSTOP)
        assert_refused(
            other.run("-y", check=False), f"{host.name}: another run is at work: ", "@", ", since 20", " UTC"
        )
    finally:
        first.kill()
        first.communicate()
    assert host.run("sha256sum /etc/sydent/sydent.conf").stdout == edited and restarted(before, host) == set()

    # The computer of the first run is gone: nobody waits for it.
    assert other.run("-y").changed == ["Configure Sydent", "Run Sydent"]


@pytest.mark.once("debian13")
def test_other_users_cannot_take_the_locks(deployed: Deployed) -> None:
    host = deployed.host
    ours = ["/run/matrix-metal", LOCK, "/opt/uv/lock"]
    named = "-path '*/site-packages' -prune -o -type f -user root \\( -name lock -o -name '*.lock' \\) -print"
    locks = [*ours, *host.run(f"find /run /opt -xdev {named}").stdout.split()]
    taken = f"for lock in {' '.join(locks)}; do runuser -u nobody -- flock -n $lock echo $lock 2>/dev/null; done; true"
    assert host.run(taken).stdout.split() == []
    for path in ours:
        assert host.run(f"flock -n {path} true").returncode == 0, path
    # uv makes its lock in a virtualenv writable for everybody.
    assert deployed.host.run("find /opt /run/matrix-metal -type f -perm /022").stdout == ""


# --- a machine without a deployment ---------------------------------------------------------------


@dataclass(frozen=True)
class Empty:
    host: Host
    deployment: Deployment


@pytest.fixture(scope="module")
def empty(testbed: Testbed, release_page: ReleaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Empty]:
    """A fresh host, and a deployment that has not been run."""
    host = testbed.up("runs13")
    yield Empty(host, complete(testbed, host, tmp_path_factory.mktemp("runs13"), release_page))
    host.down()


def state_of(host: Host) -> str:
    """All that a deployment could change: packages, users, and every file with its size, time, owner and mode.

    Left out: what the machine writes by itself during a login.
    """
    left_out = " -o ".join(
        f"-path {path}" for path in ("/dev", "/proc", "/run", "/sys", "/var/lib/systemd", "/var/log")
    )
    return host.run(
        "dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n'; getent passwd; "
        f"find / -xdev \\( {left_out} \\) -prune -o -printf '%p %y %m %U %G %s %T@ %l\\n' | sort",
        timeout=120,
    ).stdout


def test_dry_run_on_an_empty_machine_lists_everything_and_changes_nothing(empty: Empty) -> None:
    host, deployment = empty.host, empty.deployment
    before, controller = state_of(host), set(deployment.directory.iterdir())

    dry = deployment.run("--dry")

    timers = {"Run the timer of the count", "Run the timer of the figures"}
    assert [name for name in dry.planned if name.startswith("Run ") and name not in timers] == IN_ORDER
    assert timers <= set(dry.planned)
    assert {"Install the Debian packages", "Configure Synapse", "Install the Sliding Sync proxy"} <= set(dry.planned)
    assert dry.results["results"] is None
    assert state_of(host) == before
    # A download may be kept for the real run; a vault, a key or a record of checksums is not written.
    assert set(deployment.directory.iterdir()) - controller <= {deployment.directory / "cache"}


def test_dry_diff_on_an_empty_machine_shows_files_without_secrets(empty: Empty) -> None:
    host, deployment = empty.host, empty.deployment
    vault = Vault.open(deployment.vault)
    for name, known in SECRETS.items():
        if known.kind != "given":
            vault.get(name)
    vault.save()
    kept, before = deployment.vault.read_bytes(), state_of(host)

    dry = deployment.run("--dry", "--diff")

    assert "static-auth-secret=*****" in dry.output
    assert f'server_name: "{host.domain}"' in dry.output
    for name in SECRETS:
        if vault.has(name):
            assert vault.get(name).reveal() not in dry.output, name
    assert state_of(host) == before
    assert deployment.vault.read_bytes() == kept


# Runs on the same machine are killed one after the other: at which operation, and how many seconds after it began.
INTERRUPTIONS = [
    ("Start building the virtualenvs", 0.0),
    ("Start building the virtualenvs", 0.5),
    ("Install the Debian packages", 1.5),
    ("Install the Debian packages", 4.0),
    ("Configure Caddy", 0.0),
    ("Configure coturn", 0.4),
    ("Configure Synapse", 0.05),
    ("Run Synapse", 0.0),
    ("Run Synapse", 1.0),
    ("Configure Sydent", 0.0),
]


# Synapse's first start with an empty database, whose connection is closed in the middle; systemd restarts Synapse repeatedly.
FIRST_START = """
set -eu
cd /
postgres() { runuser -u postgres -- "$@"; }
postgres dropdb --force synapse
postgres createdb --owner=matrix-synapse --encoding=UTF8 --locale=C --template=template0 synapse
systemctl start --no-block matrix-synapse
postgres psql -XAtq -d synapse <<'END'
SET statement_timeout = '60s';
DO $$ BEGIN
    LOOP
        PERFORM pg_stat_clear_snapshot();
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'matrix-synapse'
            AND (SELECT count(*) FROM pg_tables WHERE schemaname = 'public') > 10;
        EXIT WHEN FOUND;
    END LOOP;
END $$;
END
[ "$(postgres psql -XAtq -d synapse -c 'SELECT count(*) FROM schema_version')" = 0 ]
"""


def kill_at(deployment: Deployment, operation: str, seconds: float = 0.0) -> str:
    """Begin a run, and kill it so many seconds after it has reached the operation; returns its output."""
    run = deployment.start("-y")
    output = ""
    assert run.stdout is not None
    try:
        for line in run.stdout:
            output += line
            if operation in line:
                time.sleep(seconds)
                return output
        raise AssertionError(f"the run ended before {operation!r}:\n{output}")
    finally:
        run.kill()
        run.communicate()


def assert_a_first_start_is_explained(host: Host, deployment: Deployment) -> None:
    """It ends at once, again and again, for a mistake in the administrator's own settings."""
    own = "/etc/matrix-synapse/conf.d/own.yaml"
    host.run(
        f"mkdir -p {own.rpartition('/')[0]}; echo 'enable_metrics: [' >{own}; chgrp -R matrix-synapse /etc/matrix-synapse"
    )
    begin = time.monotonic()
    run = deployment.run("-y", check=False)
    assert time.monotonic() - begin < 60
    assert run.status == 1 and f'in "{own}", line 2' in run.output
    assert "matrix-synapse.service does not start: its configuration is refused, see above" in run.refusal
    assert host.run("systemctl is-active matrix-synapse", check=False).stdout == "inactive\n"
    # As it was before: systemd does not know it.
    host.run(
        f"rm {own}; systemctl disable --quiet matrix-synapse; rm /etc/systemd/system/matrix-synapse.service; "
        "systemctl daemon-reload; systemctl reset-failed matrix-synapse 2>/dev/null || true"
    )
    assert host.run("systemctl show -P LoadState matrix-synapse").stdout == "not-found\n"


def test_interrupted_runs_are_completed_by_the_next(empty: Empty, tmp_path: Path) -> None:
    host, deployment = empty.host, empty.deployment
    kill_at(deployment, "Install the Debian packages")
    run = deployment.start("-y")
    # At another computer with the same vault, somebody else deploys to the new machine meanwhile.
    host.run(f"until [ -e {LOCK} ] && ! flock -n -s {LOCK} true; do sleep 0.02; done", timeout=60)
    elsewhere = Path(shutil.copytree(deployment.directory, tmp_path / "elsewhere"))
    other = Deployment(elsewhere, [host], deployment.settings)
    other.environment |= deployment.environment
    assert_refused(other.run("-y", check=False), f"{host.name}: another run is at work: ", "@", ", since 20", " UTC")
    # A power failure of the machine while packages are unpacked and virtualenvs are built.
    host.run("until pgrep -x dpkg; do sleep 0.1; done; sleep 0.5")
    host.kill()
    run.kill()
    run.communicate()
    host.start()
    for operation, seconds in INTERRUPTIONS:
        kill_at(deployment, operation, seconds)
        if operation == "Configure Synapse":
            assert_a_first_start_is_explained(host, deployment)
    deployment.run("-y")
    assert_nothing_to_do(deployment)
    assert_all_answer(host)


def test_restart_missed_by_an_interrupted_run_is_done_by_the_next(empty: Empty) -> None:
    host, deployment = empty.host, empty.deployment
    deployment.run("-y")
    group_data = deployment.directory / "group_data" / f"{deployment.name}.py"
    chosen = group_data.read_text()
    for attempt in range(1, 6):
        before, address = invocations(host), f"198.51.100.{attempt}"
        group_data.write_text(f"{chosen}external_ip = {address!r}\n")
        # The file is there, and the operation that would restart its unit comes after this one.
        kill_at(deployment, "Confine coturn")
        assert f"external-ip={address}" in host.run("cat /etc/turnserver.conf").stdout
        time.sleep(1)
        if restarted(before, host) == set():
            break  # else the run was faster than the kill
    else:
        pytest.fail("no run could be killed in time")

    # LiveKit, which comes later, tells clients the same address.
    assert deployment.run("-y").changed == ["Run coturn", "Configure LiveKit", "Run LiveKit"]

    assert restarted(before, host) == {"coturn", "livekit"}
    assert_nothing_to_do(deployment)


def test_half_created_database_of_synapse_is_created_again(empty: Empty) -> None:
    """As a power failure leaves it: Synapse commits while it creates its tables, and cannot start with half of them."""
    host, deployment = empty.host, empty.deployment
    deployment.run("-y")
    host.run("systemctl stop matrix-synapse")
    host.run(FIRST_START)
    host.run(
        "for i in $(seq 150); do journalctl -u matrix-synapse -n 50 | grep -q 'already exists' && exit; sleep 0.2; done; exit 1"
    )

    # An administrator is connected to it with psql.
    host.run("systemd-run --quiet --unit=psql-session --uid=postgres sh -c 'sleep 600 | psql -d synapse'")
    begin = time.monotonic()
    refused = deployment.run("-y", check=False)
    assert refused.status == 1
    assert "while somebody is connected to it (postgres with psql)" in refused.output, refused.output
    assert time.monotonic() - begin < 45, "the run waited for the administrator to leave"
    host.run("systemctl stop psql-session")

    assert deployment.run("-y").changed == ["Create the databases", "Run Synapse"]

    assert_all_answer(host)
    assert_nothing_to_do(deployment)


@pytest.mark.once("debian13")
def test_a_role_removed_from_the_inventory_is_reported(deployed: Deployed) -> None:
    deployment, everything = deployed.deployment, {role: [deployed.host.name] for role in EVERYTHING}
    try:
        deployment.assign({role: names for role, names in everything.items() if role != "sydent"})
        last = deployment.run("--dry").output.strip().splitlines()[-1]
        assert "still has Sydent from an earlier run" in last and "manage.py trial remove sydent" in last
    finally:
        deployment.assign(everything)
    assert "still has" not in deployment.run("--dry").output
