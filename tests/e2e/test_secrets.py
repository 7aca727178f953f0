"""Secrets reach the programs that need them, whatever characters they have, and are disclosed nowhere else.

On a fresh machine that an administrator with sudo deploys, with pyinfra's most verbose output.
"""

import base64
import json
import secrets
import shlex
import string
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roles import Unit
from settings.admin import PASSWORD
from tests.built import built
from tests.conftest import complete
from tests.deployment import EVERYTHING, Deployment, Run
from tests.e2e.watching import HIDDEN, command_lines
from tests.protocols.turn import Credentials
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import SECRETS, Vault

VERBOSE = ("-vvv", "--diff", "--debug")
# Every printable ASCII character, and what shells, YAML, ConfigParser, systemd, Jinja2 and printf would expand or escape.
SPECIAL = string.digits + string.punctuation + r" ${HOME} $(id) `id` %(nothing)s %% {{ x }} {% x %} \n \\ '' # ; " + '"'
# The secrets with special characters in these tests.
SPECIAL_SECRETS = [
    "synapse_registration_shared_secret",
    "synapse_macaroon_secret_key",
    "synapse_form_secret",
    "turn_shared_secret",
    "sliding_sync_secret",
    "smtp_password",
]
UNITS = [unit for role in EVERYTHING.values() for unit in role.units]


@dataclass(frozen=True)
class Machine:
    """A machine deployed with special characters in its secrets. first: its first run. command_lines: all during that run."""

    host: Host
    deployment: Deployment
    first: Run
    command_lines: str

    def secret(self, name: str) -> str:
        return Vault.open(self.deployment.vault).get(name).reveal()


@pytest.fixture(scope="module")
def machine(
    testbed: Testbed, release_page: ReleaseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    host = testbed.up("secrets12", release="bookworm", layers=built(testbed, "bookworm"))
    deployment = complete(testbed, host, tmp_path_factory.mktemp("secrets12"), release_page, user="admin")
    with (deployment.directory / "group_data" / f"{deployment.name}.py").open("a") as group_data:
        group_data.write(f"smtp_host = 'mail.{host.domain}'\nsmtp_username = 'mailer'\n")
    vault = Vault.open(deployment.vault)
    for name in SPECIAL_SECRETS:
        # With random letters and digits at both ends, by which it is recognised.
        vault.set(name, f"{secrets.token_hex(8)}{SPECIAL}{secrets.token_hex(8)}")
    vault.save()

    with command_lines(host) as seen:
        first = deployment.run("-y", *VERBOSE)
    yield Machine(host, deployment, first, "\n".join(seen))
    host.down()


def traces(values: Iterable[str]) -> list[str]:
    """Short strings, at least one of which is in every text that contains one of the secrets, in plain text or base64.

    Quoting changes the special characters in the middle, but never the ends, which are letters and digits.
    """
    found = []
    for value in values:
        for end in {value[:16], value[-16:]}:
            # Base64 has three forms of a string, by its offset; the outermost characters depend on what is around it.
            in_base64 = (base64.b64encode(b"\0" * before + end.encode()).decode()[4:-4] for before in range(3))
            found += [end, *in_base64]
    return found


def traces_of(vault: Path) -> list[str]:
    opened = Vault.open(vault)
    values = {name: opened.get(name).reveal() for name in SECRETS if opened.has(name)}
    assert set(SPECIAL_SECRETS) | {"sydent_signing_key"} <= set(values)
    # Without the prefix that all signing keys have.
    return traces(value.removeprefix("ed25519 0 ") for value in values.values())


def shown(run: Run) -> str:
    """All that a run printed, without white space, because secrets may be wrapped."""
    return "".join((run.output + json.dumps(run.results)).split())


def assert_none_in(needles: Iterable[str], text: str, where: str) -> None:
    # Not `assert needle not in text`: that would print the secret.
    assert not any(needle in text for needle in needles), f"a secret is in {where}"


def test_traces_find_a_secret_in_base64() -> None:
    value = f"0123456789abcdef{SPECIAL}fedcba9876543210"
    for before in ("", "x", "xy"):
        hidden = base64.b64encode(f"{before}{value} and more".encode()).decode()
        assert any(trace in hidden for trace in traces([value]))


# --- with sudo ------------------------------------------------------------------------------------


def test_administrator_with_sudo_deploys_everything(machine: Machine) -> None:
    assert machine.host.run("systemctl is-system-running --wait", check=False).stdout.strip() == "running"
    assert len(machine.first.changed) > 25
    again = machine.deployment.run("-y")
    assert again.changed == []
    assert machine.deployment.run().planned == []
    # No file of ours belongs to the administrator, and none is left in /tmp.
    assert (
        machine.host.run("find /opt /etc /var/lib -xdev -user admin; ls -A /tmp | grep pyinfra", check=False).stdout
        == ""
    )


# --- the programs get the exact secrets -----------------------------------------------------------


def test_synapse_reads_its_exact_secrets(machine: Machine) -> None:
    program = (
        "import json, sys; from synapse.config.homeserver import HomeServerConfig; "
        "c = HomeServerConfig.load_config('', sys.argv[1:]); "
        "print(json.dumps([c.registration.registration_shared_secret, c.key.macaroon_secret_key, c.key.form_secret, "
        "c.voip.turn_shared_secret, c.email.email_smtp_pass], default=lambda value: value.decode()))"
    )
    arguments = "-c /etc/matrix-synapse/homeserver.yaml -c /etc/matrix-synapse/conf.d"
    command = f"cd / && /opt/matrix-synapse/current/bin/python -c {shlex.quote(program)} {arguments}"
    read = json.loads(machine.host.run(command, user="matrix-synapse").stdout.splitlines()[-1])
    assert read == [machine.secret(name) for name in [*SPECIAL_SECRETS[:4], "smtp_password"]]


def test_sydent_reads_its_exact_secrets(machine: Machine) -> None:
    program = (
        "import json; from sydent.config import SydentConfig; c = SydentConfig(); "
        "c.parse_config_file('/etc/sydent/sydent.conf'); k = c.crypto.signing_key; "
        "from signedjson.key import encode_signing_key_base64 as encoded; "
        "print(json.dumps([c.email.smtp_password, f'{k.alg} {k.version} {encoded(k)}']))"
    )
    command = f"cd / && /opt/sydent/current/bin/python -c {shlex.quote(program)}"
    read = json.loads(machine.host.run(command, user="sydent").stdout.splitlines()[-1])
    assert read == [machine.secret("smtp_password"), machine.secret("sydent_signing_key")]


def test_sliding_sync_proxy_reads_its_exact_secret(machine: Machine) -> None:
    environment = machine.host.run("cat /proc/$(systemctl show -p MainPID --value sliding-sync)/environ").stdout
    assert f"SYNCV3_SECRET={machine.secret('sliding_sync_secret')}" in environment.split("\0")


@pytest.mark.parametrize("right", [True, False], ids=["right secret", "wrong secret"])
def test_coturn_reads_its_exact_shared_secret(machine: Machine, right: bool) -> None:
    """It accepts credentials that are signed with the secret, as Synapse signs them, and no others."""
    secret = machine.secret("turn_shared_secret") if right else "another"
    signed = Credentials.signed(f"{int(time.time()) + 600}:@test:{machine.host.domain}", secret)
    user = f"-u {shlex.quote(signed.username)} -w {shlex.quote(signed.password)}"
    client = f"turnutils_uclient -y -c -n 1 -m 1 {user} {machine.host.address}"
    done = machine.host.run(f"timeout 30 {client}", check=False)
    assert (done.returncode == 0) == right, done.stdout + done.stderr


# --- no disclosure --------------------------------------------------------------------------------


def test_output_of_runs_contains_no_secret(machine: Machine) -> None:
    needles = traces_of(machine.deployment.vault)
    # The diffs of the files with secrets are in the output, with the secrets masked.
    assert "static-auth-secret=*****" in machine.first.output
    assert_none_in(needles, shown(machine.first), "the output of the first run")
    assert_none_in(needles, shown(machine.deployment.run("-y", *VERBOSE)), "the output of a run that changes nothing")


def test_command_lines_contain_no_secret(machine: Machine) -> None:
    assert "base64 -d" in machine.command_lines, "no command of the run was recorded"
    needles = traces_of(machine.deployment.vault)
    assert_none_in(needles, "".join(machine.command_lines.split()), "the command lines during the first run")
    after = machine.host.run("cat /proc/[0-9]*/cmdline 2>/dev/null; true").stdout
    assert_none_in(needles, after, "the command lines of running processes")


def test_systemd_and_the_journal_contain_no_secret(machine: Machine) -> None:
    needles = traces_of(machine.deployment.vault)
    units = machine.host.run("systemctl show --all '*'; systemctl show-environment").stdout
    assert "matrix-synapse" in units
    assert_none_in(needles, units, "systemctl show")
    # sudo writes every command that it runs into the journal.
    journal = machine.host.run("journalctl --all --no-pager -o verbose", timeout=120).stdout
    assert "COMMAND=" in journal
    assert_none_in(needles, "".join(journal.split()), "the journal")


def test_no_environment_contains_a_secret_unless_systemd_reads_it_for_the_service(machine: Machine) -> None:
    """The Sliding Sync proxy is configured only by its environment, which only root and its own user can read."""
    find = f"grep -laF -f {HIDDEN}/needles /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3; true"
    machine.host.run(f"cat > {HIDDEN}/needles", stdin="\n".join(traces_of(machine.deployment.vault)))
    pids = machine.host.run(find).stdout.split()
    units = {pid: machine.host.run(f"cat /proc/{pid}/cgroup").stdout.strip().rpartition("/")[2] for pid in pids}
    users = {unit.name: unit.user for unit in UNITS if unit.environment}
    assert set(units.values()) == set(users)
    for pid, unit in units.items():
        assert machine.host.run(f"stat -c '%a %U' /proc/{pid}/environ").stdout == f"400 {users[unit]}\n"


def test_only_files_that_the_programs_read_contain_secrets(machine: Machine) -> None:
    # The hash of the password of the administrator's pages is in the Caddyfile, which nobody but Caddy may read either.
    hashed = traces([machine.secret(PASSWORD)])
    needles = [each for each in traces_of(machine.deployment.vault) if each not in hashed]
    assert machine.host.run("stat -c '%a %U:%G' /etc/caddy/Caddyfile").stdout == "640 root:caddy\n"
    machine.host.run(f"cat > {HIDDEN}/needles", stdin="\n".join(needles))
    found = machine.host.run(
        "cd / && grep -rlaF --devices=skip --exclude-dir=secrets-of-the-test "
        f"-f {HIDDEN}/needles /etc /var /opt /run /tmp /root /home /usr/local 2>/dev/null | "
        "xargs stat -c '%n %a %U:%G'",
        timeout=120,
    ).stdout
    # File, or directory of files -> mode and owners. What systemd reads for a service is root's alone.
    wanted = {path: _read_by(unit.user) for unit in UNITS for path in unit.secrets}
    wanted |= {unit.environment: _read_by("root") for unit in UNITS if unit.environment}
    holding = set()
    for line in found.splitlines():
        path, _, rights = line.partition(" ")
        [declared] = [each for each in wanted if path == each or path.startswith(f"{each}/")] or [""]
        assert rights == wanted.get(declared), f"{line}, which is declared as {declared or 'nothing'}"
        holding.add(declared)
    assert holding == set(wanted)
    # The directories of the roles, above and below /etc, and those of their data.
    directories = {str(parent) for path in wanted for parent in Path(path).parents if len(parent.parts) > 2}
    directories |= {path for path in wanted if machine.host.run(f"[ -d {path} ]", check=False).returncode == 0}
    directories |= {str(Path(path).parent) for unit in UNITS for path in unit.private if _is_ours(path, unit)}
    modes = machine.host.run(f"stat -c '%a %n' {' '.join(directories)}").stdout.splitlines()
    assert {"/etc/matrix-synapse/secrets", "/etc/sliding-sync", "/var/lib/sydent"} <= directories
    assert [line for line in modes if not line.startswith("750 ")] == []
    signing_key = machine.host.run("stat -c '%a %U' /var/lib/matrix-synapse/signing.key").stdout
    assert signing_key == "600 matrix-synapse\n"


def _read_by(user: str) -> str:
    """Mode and owners of a file with secrets for this user."""
    return "600 root:root" if user == "root" else f"640 root:{user}"


def _is_ours(path: str, unit: Unit) -> bool:
    """Whether a private path is in the data directory of a service that has no package of Debian's."""
    return path.startswith("/var/lib/") and not unit.masked


def test_controller_stores_secrets_only_encrypted(machine: Machine) -> None:
    needles = traces_of(machine.deployment.vault)
    files = [path for path in machine.deployment.directory.rglob("*") if path.is_file()]
    assert machine.deployment.vault in files
    for path in files:
        assert_none_in(needles, path.read_text(errors="replace"), path.name)


# The last test, because it changes the secrets.
def test_rotation_discloses_neither_old_nor_new_secrets(machine: Machine) -> None:
    needles = traces_of(machine.deployment.vault)
    vault = Vault.open(machine.deployment.vault)
    for name in SPECIAL_SECRETS:
        if SECRETS[name].kind == "given":
            vault.set(name, secrets.token_hex(16))
        else:
            vault.rotate(name, force=True)
    vault.save()
    needles += traces_of(machine.deployment.vault)

    dry = machine.deployment.run("--dry", *VERBOSE)
    rotated = machine.deployment.run("-y", *VERBOSE)

    assert_none_in(needles, shown(dry), "the output of --dry --diff")
    assert_none_in(needles, shown(rotated), "the output of a rotation")
    assert rotated.changed == [
        "Configure coturn",
        "Run coturn",
        "Configure Synapse",
        "Run Synapse",
        "Configure Sydent",
        "Run Sydent",
        "Configure the Sliding Sync proxy",
        "Run the Sliding Sync proxy",
        # It signs credentials for the relay as well.
        "Configure LiveKit",
        "Run LiveKit",
        # It sends mails.
        "Configure the monitoring",
        "Run Alertmanager",
    ]
    assert machine.deployment.run("-y").changed == []
