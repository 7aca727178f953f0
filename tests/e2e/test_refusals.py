"""Wrong settings, inventories, vaults and machines are refused with one line, before anything is changed."""

import contextlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from operations.machine import KEY_NOTE, SIGNING_KEY
from roles import HOUSEKEEPING, HOUSEKEEPING_REPORT
from tests.conftest import Deployed, from_page
from tests.deployment import EVERYTHING, PYINFRA, ROOT, Deployment, Run
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import Vault

# Directories to which a deployment writes.
WRITTEN = "/etc /opt /usr/local /var/lib"
STAMP = "/run/before"


@dataclass(frozen=True)
class Fresh:
    """A machine to which nothing has been deployed."""

    host: Host
    page: ReleaseServer
    directory: Path

    def deployment(
        self, roles: Mapping[str, list[str]] | None = None, user: str = "root", **settings: Any
    ) -> Deployment:
        """A correct deployment, changed by these settings. A setting that is ... is left out."""
        correct = {
            "server_name": self.host.domain,
            "tls": "internal",
            **from_page(self.page),
        }
        chosen = {name: value for name, value in {**correct, **settings}.items() if value is not ...}
        deployment = Deployment(self.directory, [self.host], chosen, roles, user=user)
        deployment.environment |= {**self.page.environment, "XDG_CACHE_HOME": str(self.directory / "cache")}
        return deployment

    def changed_files(self) -> list[str]:
        """The files that were written since the stamp, without those that systemd writes by itself."""
        found = self.host.run(f"find {WRITTEN} -path /var/lib/systemd -prune -o -newercm {STAMP} -print").stdout
        return found.splitlines()


@pytest.fixture(scope="module")
def machine(testbed: Testbed) -> Iterator[Host]:
    host = testbed.up("refusals13")
    # The first read of a directory of an overlay may write to it.
    host.run(f"find {WRITTEN} >/dev/null")
    yield host
    host.down()


@pytest.fixture
def fresh(machine: Host, release_page: ReleaseServer, tmp_path: Path) -> Fresh:
    # File times are coarser than the clock: what is written later must have a later time for sure.
    machine.run(f"touch {STAMP}; sleep 0.02")
    return Fresh(machine, release_page, tmp_path)


def assert_refused(run: Run, *words: str) -> None:
    """The run stopped with one line that has all of these words."""
    assert run.status == 1, run.output
    assert run.changed == []
    assert len(run.refusal.splitlines()) == 1, run.output
    assert "Traceback" not in run.output
    for word in words:
        assert word in run.refusal


def assert_refused_without_changes(fresh: Fresh, deployment: Deployment, *words: str) -> None:
    secrets = {
        path: path.read_bytes() for path in (deployment.vault, deployment.vault.with_suffix(".key")) if path.exists()
    }
    assert_refused(deployment.run("-y", check=False), *words)
    assert fresh.changed_files() == []
    for suffix in (".vault", ".key", ".lock"):
        path = deployment.vault.with_suffix(suffix)
        assert (path.read_bytes() if path.exists() else None) == secrets.get(path), f"{path.name} was written"


def everything_on(name: str, but: tuple[str, ...] = (), **more: list[str]) -> dict[str, list[str]]:
    return {**{role: [name] for role in EVERYTHING if role not in but}, **more}


# --- settings -------------------------------------------------------------------------------------

HERE = "group_data/trial.py: "


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"server_name": ...}, [HERE, "server_name is missing", "example.org"]),
        ({"server_name": "https://x.test"}, [HERE, "server_name = 'https://x.test' is not allowed", "a domain name"]),
        ({"server_name": "xn--9s9hnf.test"}, [HERE, "server_name = 'xn--9s9hnf.test'", "IDNA 2008 does not allow"]),
        ({"server_name": "Matrix.test"}, [HERE, "server_name = 'Matrix.test'", "lower-case"]),
        ({"server_name": "example.org"}, [HERE, "server_name is still example.org", "your own domain"]),
        ({"federaton": False}, [HERE, "there is no setting federaton", "did you mean federation?"]),
        ({"federation": "yes"}, [HERE, "federation = 'yes' is not allowed", "True or False"]),
        ({"smtp_port": "25"}, [HERE, "smtp_port = '25' is not allowed", "1 to 65535"]),
        ({"tls": "letsencrypt"}, [HERE, "tls = 'letsencrypt' is not allowed", '"acme", "internal" or "files"']),
        ({"tls": "acme"}, [HERE, "admin_email is missing", "certificate authority"]),
        ({"tls": "files"}, [HERE, "tls_files is missing", '"certificate"']),
        ({"max_upload_size": "50 MB"}, [HERE, "max_upload_size = '50 MB' is not allowed", '"50M"']),
        ({"private_networks": ["10.0.0.1/8"]}, [HERE, "private_networks", "10.0.0.1/8", '["10.1.0.0/16"]']),
        ({"turn_domain": f"{'a' * 60}.{'b' * 60}.x.test"}, [HERE, "turn_domain", "128 characters", "at most 127"]),
        (
            {"matrix_domain": "chat.x.test", "turn_domain": "chat.x.test"},
            [HERE, "turn_domain and matrix_domain are both chat.x.test"],
        ),
    ],
)
def test_wrong_setting_is_refused(fresh: Fresh, settings: dict[str, Any], words: list[str]) -> None:
    assert_refused_without_changes(fresh, fresh.deployment(**settings), *words)


@pytest.mark.parametrize(
    ("but", "more", "words"),
    [
        (("synapse", "rtc", "element", "admin", "monitoring"), {}, ["sliding_sync needs the role synapse"]),
        (("synapse", "sliding_sync", "element", "admin", "monitoring"), {}, ["rtc needs the role synapse"]),
        (("postgres", "monitoring"), {}, ["needs the role postgres"]),
        (("caddy", "admin"), {}, ["has coturn", "needs the role caddy", "certificate"]),
        ((), {"coturn": ["refusals13", "another"]}, ["coturn has 2 machines (refusals13, another)", "one is allowed"]),
        (("coturn",), {"cotrun": ["refusals13"]}, ["the group cotrun is no role", "did you mean coturn?"]),
    ],
    ids=["synapse for the proxy", "synapse for calls", "postgres", "caddy", "two machines", "misspelt"],
)
def test_wrong_inventory_is_refused(
    fresh: Fresh, but: tuple[str, ...], more: dict[str, list[str]], words: list[str]
) -> None:
    roles = everything_on(fresh.host.name, but, **more)
    if "postgres" in but:
        del roles["sliding_sync"]
    assert_refused_without_changes(fresh, fresh.deployment(roles), "inventories/trial.py: ", *words)


def test_unedited_sample_inventory_is_refused() -> None:
    """Before any machine is connected to."""
    command = [PYINFRA, "inventories/prod.py", "deploy.py", "-y"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert_refused(Run(done.returncode, done.stderr, {}), "group_data/prod.py", "server_name")
    assert "Connected" not in done.stderr


@pytest.mark.parametrize("how", ["./deploy.py", "absolute", "copied", "two files"])
def test_checks_run_whatever_the_deploy_file_is_called(how: str, tmp_path: Path) -> None:
    copied = tmp_path / "my.py"
    copied.write_text((ROOT / "deploy.py").read_text())
    nothing = tmp_path / "nothing.py"
    nothing.write_text("")
    files = {
        "./deploy.py": ["./deploy.py"],
        "absolute": [str(ROOT / "deploy.py")],
        "copied": [str(copied)],
        "two files": [str(nothing), "deploy.py"],
    }[how]
    for limited in ([], ["--limit", "matrix.example.org"]):
        command = [PYINFRA, "inventories/prod.py", *files, "-y", *limited]
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert_refused(Run(done.returncode, done.stderr, {}), "group_data/prod.py: server_name is still example.org")
        assert "matrix.example.org]" not in done.stderr, "a machine was connected to"


def test_checks_run_without_config_py(fresh: Fresh) -> None:
    """They run later then, but still before anything is changed."""
    deployment = fresh.deployment()
    command = [PYINFRA, str(deployment.inventory), "deploy.py", "-y", "--config", "/dev/null"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **deployment.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_refused(Run(done.returncode, done.stderr, {}), "config.py was not read")
    assert fresh.changed_files() == []


def test_checks_do_not_stop_commands_that_only_read(fresh: Fresh) -> None:
    """Wrong settings can be looked at."""
    deployment = fresh.deployment(server_name="https://x.test")
    for words, expected in ((["debug-inventory"], "https://x.test"), (["exec", "--", "echo", "hello $0"], "hello")):
        command = [PYINFRA, str(deployment.inventory), *words]
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and expected in done.stdout + done.stderr, done.stderr


# --- connection -----------------------------------------------------------------------------------


def assert_no_connection(run: Run, host: Host, *words: str) -> None:
    """A line for each machine has the cause, and the last line is that nothing was touched."""
    assert_refused(run, f"{host.name} cannot be reached, see above; nothing was touched")
    assert "--exclude" not in run.refusal, "there is no other machine that could be deployed"
    [line, _] = [line for line in run.output.splitlines() if host.name in line]
    for word in words:
        assert word in line


def test_unreachable_machine_is_reported(fresh: Fresh) -> None:
    deployment = fresh.deployment()
    written = deployment.inventory.read_text()
    deployment.inventory.write_text(written.replace("'ssh_user'", "'ssh_port': 9, 'ssh_user'"))
    run = deployment.run("-y", check=False)
    assert_no_connection(run, fresh.host, "Could not connect", "port 9", fresh.host.address)
    assert fresh.changed_files() == []


def test_unknown_user_is_reported(fresh: Fresh) -> None:
    run = fresh.deployment(user="nobody-of-this-name").run("-y", check=False)
    assert_no_connection(run, fresh.host, "Authentication")
    assert fresh.changed_files() == []


def test_user_without_sudo_is_refused(fresh: Fresh) -> None:
    host = fresh.host
    host.run("useradd --create-home plain && install -d -o plain -m 700 /home/plain/.ssh")
    host.run("install -o plain -m 600 /home/admin/.ssh/authorized_keys /home/plain/.ssh/authorized_keys")
    host.run(f"sleep 0.02; touch {STAMP}; sleep 0.02")
    assert_refused_without_changes(fresh, fresh.deployment(user="plain"), "refusals13: connected as plain", "sudo")


# --- machine --------------------------------------------------------------------------------------


@contextlib.contextmanager
def replaced(host: Host, path: str, content: str) -> Iterator[None]:
    """Give a file other content by a bind mount."""
    host.run("cat > /run/replacement", stdin=content)
    host.run(f"mount --bind /run/replacement $(readlink -f {path})")
    try:
        yield
    finally:
        host.run(f"umount $(readlink -f {path})")


@pytest.mark.parametrize(
    ("distribution", "release"), [("debian", "11"), ("ubuntu", "24.04")], ids=["debian11", "ubuntu"]
)
def test_other_distribution_is_refused(fresh: Fresh, distribution: str, release: str) -> None:
    with replaced(fresh.host, "/etc/os-release", f'ID={distribution}\nVERSION_ID="{release}"\n'):
        words = f"refusals13: runs {distribution} {release}", "only Debian 13 and 12"
        assert_refused_without_changes(fresh, fresh.deployment(), *words)


def test_too_little_memory_is_refused(fresh: Fresh) -> None:
    with replaced(fresh.host, "/proc/meminfo", "MemTotal:         524288 kB\nMemAvailable:     262144 kB\n"):
        assert_refused_without_changes(fresh, fresh.deployment(), "has 512 MiB of memory", "at least")


def test_too_small_disk_is_refused(fresh: Fresh) -> None:
    fresh.host.run(f"mount -t tmpfs -o size=100M tmpfs /opt; sleep 0.02; touch {STAMP}; sleep 0.02")
    try:
        assert_refused_without_changes(fresh, fresh.deployment(), "has 100 MiB free for /opt and /var", "at least")
    finally:
        fresh.host.run("umount /opt")


@pytest.mark.parametrize(
    ("protocol", "port", "role"), [("tcp", 80, "caddy"), ("tcp", 443, "caddy"), ("udp", 3478, "coturn")]
)
def test_port_in_use_is_refused(fresh: Fresh, protocol: str, port: int, role: str) -> None:
    listen = ", Listen => 1" if protocol == "tcp" else ""
    program = f"my $s = IO::Socket::INET->new(Proto => '{protocol}', LocalPort => {port}{listen}) or die $!; sleep 600"
    # As a service, like most programs that listen, and not in the background of the SSH session.
    fresh.host.run(
        f'systemd-run --quiet --collect --unit=port-in-use perl -MIO::Socket::INET -e "{program.replace("$", chr(92) + "$")}"'
    )
    try:
        fresh.host.run(f"until ss -Hln{protocol[0]} sport = :{port} | grep -q .; do sleep 0.05; done")
        words = f"refusals13: {protocol} port {port}", f"which {role} needs", "taken by perl (process "
        assert_refused_without_changes(fresh, fresh.deployment(), *words)
    finally:
        fresh.host.run("systemctl stop port-in-use.service")


def test_data_of_a_newer_postgresql_are_not_left_aside(fresh: Fresh) -> None:
    release, data = "18", "/var/lib/postgresql/18/main"
    fresh.host.run(f"mkdir -p {data}; echo {release} >{data}/PG_VERSION; sleep 0.02; touch {STAMP}; sleep 0.02")
    try:
        words = f"refusals13: {data} has data of PostgreSQL {release}", f"(mv {data} /root)"
        assert_refused_without_changes(fresh, fresh.deployment(), *words)
    finally:
        fresh.host.run("rm -r /var/lib/postgresql")


# --- vault ----------------------------------------------------------------------------------------


def make_vault(deployment: Deployment) -> Path:
    """Make a vault with its key; returns the path of the key."""
    vault = Vault.open(deployment.vault)
    vault.get("turn_shared_secret")
    vault.save()
    return deployment.vault.with_suffix(".key")


def test_vault_without_its_key_is_refused(fresh: Fresh) -> None:
    deployment = fresh.deployment()
    make_vault(deployment).unlink()
    assert_refused_without_changes(fresh, deployment, "trial.vault has no key", "restore the key")


def test_vault_with_another_key_is_refused(fresh: Fresh) -> None:
    deployment = fresh.deployment()
    make_vault(deployment)
    deployment.environment["MATRIX_VAULT_KEY"] = Fernet.generate_key().decode()
    assert_refused_without_changes(fresh, deployment, "trial.vault does not open with the key in MATRIX_VAULT_KEY")


def test_missing_secret_of_the_administrator_is_refused(fresh: Fresh) -> None:
    deployment = fresh.deployment(smtp_host="mail.x.test", smtp_username="x")
    assert_refused_without_changes(fresh, deployment, "smtp_password is not set", "python vault.py set")


@contextlib.contextmanager
def marked(fresh: Fresh, **marker: str) -> Iterator[None]:
    """A machine with the marker of an earlier deployment."""
    directory = "/etc/matrix-metal"
    fresh.host.run(f"mkdir {directory}; cat > {directory}/deployment.json", stdin=json.dumps(marker))
    fresh.host.run(f"sleep 0.02; touch {STAMP}; sleep 0.02")
    try:
        yield
    finally:
        fresh.host.run(f"rm -r {directory}")


def test_another_server_name_than_before_is_refused(fresh: Fresh) -> None:
    deployment = fresh.deployment()
    make_vault(deployment)
    with marked(fresh, server_name="earlier.test", vault=Vault.open(deployment.vault).id):
        words = "refusals13: was deployed as earlier.test", "refusals13.test", "cannot be changed"
        assert_refused_without_changes(fresh, deployment, *words)


def test_another_vault_than_before_is_refused(fresh: Fresh) -> None:
    with marked(fresh, server_name=fresh.host.domain, vault="0123456789abcdef"):
        words = "refusals13: was deployed with another vault", "restore the vault and key"
        assert_refused_without_changes(fresh, fresh.deployment(), *words)


def test_another_synapse_is_not_replaced(fresh: Fresh) -> None:
    """matrix.org's package has the same directories, and its files would be gone."""
    home = "/etc/matrix-synapse"
    fresh.host.run(
        f"mkdir {home}; echo 'pid_file: /run/x' >{home}/homeserver.yaml; sleep 0.02; touch {STAMP}; sleep 0.02"
    )
    try:
        words = "refusals13: has a Synapse that was installed in another way", f"({home}/homeserver.yaml)", "README.md"
        assert_refused_without_changes(fresh, fresh.deployment(), *words)
    finally:
        fresh.host.run(f"rm -r {home}")


@pytest.mark.parametrize("package", ["matrix-synapse", "matrix-synapse-py3"])
def test_the_package_of_another_synapse_is_purged_first(fresh: Fresh, package: str) -> None:
    """Its files were moved away. Purged after the deploy, it would remove homeserver.yaml and disable the unit."""
    host, home = fresh.host, "/etc/matrix-synapse"
    control = f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: none"
    host.run(
        f"set -e; cd $(mktemp -d); mkdir -p p/DEBIAN p{home}; printf '{control}\n' >p/DEBIAN/control\n"
        f"echo 'pid_file: /run/x' | tee p{home}/homeserver.yaml >/dev/null; echo {home}/homeserver.yaml >p/DEBIAN/conffiles\n"
        f"dpkg-deb -b p p.deb && dpkg -i p.deb && mv {home} /root/moved; sleep 0.02; touch {STAMP}; sleep 0.02"
    )
    words = "refusals13: has a Synapse that was installed in another way", "README.md"
    try:
        assert_refused_without_changes(fresh, fresh.deployment(), f"(the package {package})", *words)
        host.run(f"dpkg --remove {package}; sleep 0.02; touch {STAMP}; sleep 0.02")
        said = f"(the package {package}, which was removed and not purged)"
        assert_refused_without_changes(fresh, fresh.deployment(), said, *words)
        host.run(f"dpkg --purge {package}; sleep 0.02; touch {STAMP}; sleep 0.02")
        assert fresh.deployment().run("--dry").refusal == ""
    finally:
        host.run(f"dpkg --purge {package}; rm -rf /root/moved {home}")


@pytest.mark.once("debian13")
def test_deployed_machine_keeps_its_server_name_and_its_vault(deployed: Deployed, tmp_path: Path) -> None:
    host, mine = deployed.host, deployed.deployment
    host.run(f"touch {STAMP}; sleep 0.02")
    directories = (
        "/etc/matrix-metal /etc/matrix-synapse /etc/sydent /etc/caddy /etc/sliding-sync /etc/turnserver.conf /opt"
    )
    settings = {"server_name": "other.test", "tls": "internal", "vault": str(mine.vault)}
    renamed = Deployment(tmp_path / "renamed", [host], settings)
    assert_refused(renamed.run("-y", check=False), f"was deployed as {host.domain}", "other.test")
    lost = Deployment(tmp_path / "lost", [host], {"server_name": host.domain, "tls": "internal"})
    lost.environment |= mine.environment
    # The record of the program's sha256 is beside the vault; the test is not about it.
    (tmp_path / "lost" / "trial.lock").write_bytes(mine.vault.with_suffix(".lock").read_bytes())
    assert_refused(lost.run("-y", check=False), "was deployed with another vault", str(lost.vault))
    assert not lost.vault.exists()
    # Its marker is damaged: the secrets on the machine show which vault is its own.
    marker = host.run("cat /etc/matrix-metal/deployment.json").stdout
    host.run("head -c 99 /dev/urandom > /etc/matrix-metal/deployment.json")
    assert_refused(lost.run("-y", check=False), "was deployed with another vault", str(lost.vault))
    host.run("rm /etc/matrix-metal/deployment.json")
    assert_refused(renamed.run("-y", check=False), f"was deployed as {host.domain}", "other.test")
    host.run(f"touch {STAMP}; sleep 0.02; echo '[]' > /etc/matrix-metal/deployment.json")
    assert mine.run("-y").changed == ["Mark the machine as part of this deployment"]
    assert host.run("cat /etc/matrix-metal/deployment.json").stdout == marker
    changed = host.run(f"find {directories} -type f -newercm {STAMP}").stdout.split()
    assert changed == ["/etc/matrix-metal/deployment.json"]


@pytest.mark.once("debian13")
@pytest.mark.parametrize("deployed", ["trixie"], ids=["debian13"], indirect=True)
def test_a_renamed_inventory_keeps_its_vault(deployed: Deployed, tmp_path: Path) -> None:
    """The refusals say what it was called, and how everything else gets the new name. Another name of a machine is harmless."""
    mine, tree = deployed.deployment, tmp_path / "tree"
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        if not name.startswith(("tests/", "docs/", "bench/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    named = mine.inventory.read_text().replace(f"'{deployed.host.name}'", "'another-name'")
    (tree / "inventories" / "live.py").write_text(named)
    for suffix in (".vault", ".key", ".lock"):
        shutil.copy(mine.vault.with_suffix(suffix), tree / "inventories" / f"home{suffix}")
    chosen = {name: value for name, value in mine.settings.items() if name != "vault"}
    data = tree / "group_data" / "home.py"
    data.write_text("".join(f"{name} = {value!r}\n" for name, value in chosen.items()))
    renamed = Deployment(tmp_path, [deployed.host], {}, name="live", root=tree)
    renamed.inventory = tree / "inventories" / "live.py"
    renamed.environment |= mine.environment

    moves = "mv inventories/home.vault inventories/live.vault && mv inventories/home.key inventories/live.key"
    refused = renamed.run("-y", check=False)
    assert_refused(refused, "server_name is missing", f"If it was called home before: {moves}")
    data.rename(data.with_name("live.py"))
    refused = renamed.run("-y", check=False)
    assert_refused(refused, "was deployed with another vault", f"it was called home: {moves}")
    advice = refused.refusal.partition("it was called home: ")[2].partition("; or ")[0]
    subprocess.run(["sh", "-ec", advice], cwd=tree, check=True)
    assert renamed.run("-y").changed == []


@pytest.mark.once("debian13")
@pytest.mark.parametrize(
    ("loss", "found"),
    [("true", "is gone"), ("cp -a {key}.kept {key} && sed -i s/a_/b_/ {key}", "is another than it was")],
    ids=["gone", "another"],
)
def test_a_lost_signing_key_is_not_replaced(deployed: Deployed, loss: str, found: str) -> None:
    """Other homeservers know the homeserver by it. Synapse still has it in memory."""
    host, key = deployed.host, SIGNING_KEY
    host.run(f"mv {key} {key}.kept; {loss.format(key=key)}")
    try:
        refused = deployed.deployment.run("-y", check=False)
        assert_refused(refused, f"Synapse's signing key, {key}, {found}", f"rm {KEY_NOTE}")
    finally:
        host.run(f"mv {key}.kept {key}")
    assert deployed.deployment.run("-y").changed == []


@pytest.mark.once("debian13")
@pytest.mark.parametrize("deployed", ["trixie"], ids=["debian13"], indirect=True)
def test_another_or_an_older_database_is_refused(deployed: Deployed) -> None:
    """Synapse is stopped, and would start with it."""
    host = deployed.host
    psql = "cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1"
    host.run(f"systemctl start {HOUSEKEEPING.service}; cp -a {HOUSEKEEPING_REPORT} /root/kept")
    other = "CREATE TABLE users AS SELECT '@a:other.test' AS name"
    made = 'OWNER "matrix-synapse" TEMPLATE template0 ENCODING UTF8 LOCALE "C"'
    try:
        host.run(f"sed -i -E 's/(\"newest\": )[0-9]+/\\1999999999/' {HOUSEKEEPING_REPORT}")
        refused = deployed.deployment.run("-y", check=False)
        assert_refused(refused, "the database synapse is older than it was on", f"rm {HOUSEKEEPING_REPORT}")
        host.run(f"cp -a /root/kept {HOUSEKEEPING_REPORT}; systemctl stop matrix-synapse")
        host.run(f"{psql} -c 'ALTER DATABASE synapse RENAME TO kept' -c 'CREATE DATABASE synapse {made}'")
        refused = deployed.deployment.run("-y", check=False)
        assert_refused(refused, "the database synapse is empty or gone", "and had data on")
        host.run(f'{psql} -d synapse -c "{other}"')
        refused = deployed.deployment.run("-y", check=False)
        assert_refused(refused, "is that of the homeserver other.test, and server_name is", "restore")
        assert host.run("systemctl is-active matrix-synapse", check=False).stdout == "inactive\n"
    finally:
        host.run(f"cp -a /root/kept {HOUSEKEEPING_REPORT}; rm /root/kept")
        host.run(
            f"if {psql} -c '\\connect kept'; then {psql} -c 'DROP DATABASE IF EXISTS synapse' "
            "-c 'ALTER DATABASE kept RENAME TO synapse'; fi"
        )
    assert deployed.deployment.run("-y").changed == ["Run Synapse"]


@pytest.mark.parametrize("damage", ["echo '[]' > {}", "echo '{{}}' > {}", "head -c 99 /dev/urandom > {}", "mkdir {}"])
def test_damaged_marker_of_a_machine_without_secrets_is_refused(fresh: Fresh, damage: str) -> None:
    deployment, marker = fresh.deployment(), "/etc/matrix-metal/deployment.json"
    fresh.host.run(f"mkdir /etc/matrix-metal; {damage.format(marker)}; sleep 0.02; touch {STAMP}; sleep 0.02")
    try:
        assert_refused_without_changes(fresh, deployment, f"refusals13: {marker} ", f"away (mv {marker} /root)")
    finally:
        fresh.host.run("rm -r /etc/matrix-metal")


# --- release binary -------------------------------------------------------------------------------


def test_program_with_another_sha256_is_refused(fresh: Fresh) -> None:
    deployment = fresh.deployment(sliding_sync_sha256={"amd64": "0" * 64, "arm64": "0" * 64})
    assert_refused_without_changes(fresh, deployment, "has the sha256", "sliding_sync_sha256 says " + "0" * 64)


def test_release_page_that_cannot_be_reached_is_reported(fresh: Fresh) -> None:
    deployment = fresh.deployment(sliding_sync_releases="https://127.0.0.1:9/releases")
    words = "could not be downloaded", "connection refused", "set sliding_sync_binary = '/path/to/file'"
    assert_refused_without_changes(fresh, deployment, *words)


def test_program_for_another_architecture_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    content = bytearray(Path("/bin/true").resolve().read_bytes())
    struct.pack_into("<H", content, 18, 243)  # riscv64, which no test host is
    program = tmp_path / "syncv3"
    program.write_bytes(content)
    words = "sliding_sync_binary", "a riscv64 program", "the machine is "
    assert_refused_without_changes(fresh, fresh.deployment(sliding_sync_binary=str(program)), *words)


def test_file_that_is_no_program_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    page = tmp_path / "syncv3"
    page.write_text("<!DOCTYPE html><title>Not Found</title>")
    assert_refused_without_changes(
        fresh, fresh.deployment(sliding_sync_binary=str(page)), "sliding_sync_binary", "a web page"
    )
