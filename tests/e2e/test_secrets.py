"""Secrets reach the programs that need them, whatever characters they hold, and nobody else.

On a machine that is deployed by an administrator with sudo, from nothing, with the most talkative output there is.
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

from tests.conftest import complete
from tests.deployment import Deployment, Run
from tests.protocols.turn import Credentials
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import SECRETS, Vault

TALKATIVE = ("-vvv", "--diff", "--debug")
# Every printable ASCII character, and what shells, YAML, ConfigParser, systemd, Jinja2 and printf would make of some.
ODD = string.digits + string.punctuation + r" ${HOME} $(id) `id` %(nothing)s %% {{ x }} {% x %} \n \\ '' # ; " + '"'
GIVEN = [
    "synapse_registration_shared_secret",
    "synapse_macaroon_secret_key",
    "synapse_form_secret",
    "turn_shared_secret",
    "sliding_sync_secret",
    "smtp_password",
]
# A directory that only root can enter, and that no disk ever sees.
HIDDEN = "/run/secrets-of-the-test"
SAMPLER = r"""
my %seen;
while (!-e "HIDDEN/stop") {
    for my $file (glob "/proc/[0-9]*/cmdline") {
        local $/;
        next unless open my $handle, "<", $file;
        my $line = <$handle>;
        $seen{$line} = 1 if defined $line;
    }
    select undef, undef, undef, 0.01;
}
open my $out, ">", "HIDDEN/command-lines";
print $out join "\n", keys %seen;
"""


@dataclass(frozen=True)
class Odd:
    """A machine deployed with odd secrets. first: its first run. command_lines: what was to be seen meanwhile."""

    host: Host
    deployment: Deployment
    first: Run
    command_lines: str

    def secret(self, name: str) -> str:
        return Vault.open(self.deployment.vault).get(name).reveal()


@pytest.fixture(scope="module")
def odd(testbed: Testbed, release_page: ReleaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    host = testbed.up("secrets12", release="bookworm")
    deployment = complete(testbed, host, tmp_path_factory.mktemp("secrets12"), release_page, user="admin")
    with (deployment.directory / "group_data" / f"{deployment.name}.py").open("a") as group_data:
        group_data.write(f"smtp_host = 'mail.{host.domain}'\nsmtp_username = 'mailer'\n")
    vault = Vault.open(deployment.vault)
    for name in GIVEN:
        # What cannot be mistaken for anything else stands at both ends.
        vault.set(name, f"{secrets.token_hex(8)}{ODD}{secrets.token_hex(8)}")
    vault.save()

    host.run(f"install -d -m 700 {HIDDEN} && cat > {HIDDEN}/sampler", stdin=SAMPLER.replace("HIDDEN", HIDDEN))
    host.run(f"systemd-run --quiet --collect --unit=sampler perl {HIDDEN}/sampler")
    first = deployment.run("-y", *TALKATIVE)
    host.run(f"touch {HIDDEN}/stop; while systemctl is-active --quiet sampler; do sleep 0.1; done")
    command_lines = host.run(f"cat {HIDDEN}/command-lines").stdout
    yield Odd(host, deployment, first, command_lines)
    host.down()


def traces(values: Iterable[str]) -> list[str]:
    """Short strings of which at least one is in every text that holds one of the secrets, in plain or in base64.

    Quoting changes the middle of an odd secret but never its ends, which are letters and digits.
    """
    found = []
    for value in values:
        for end in {value[:16], value[-16:]}:
            # In base64 a string looks in one of three ways, by where it begins; its outermost characters depend on others.
            in_base64 = (base64.b64encode(b"\0" * before + end.encode()).decode()[4:-4] for before in range(3))
            found += [end, *in_base64]
    return found


def traces_of(vault: Path) -> list[str]:
    opened = Vault.open(vault)
    values = {name: opened.get(name).reveal() for name in SECRETS if opened.has(name)}
    assert set(GIVEN) | {"sydent_signing_key"} <= set(values)
    # Every signing key begins with the same words.
    return traces(value.removeprefix("ed25519 0 ") for value in values.values())


def shown(run: Run) -> str:
    """All that a run printed, without line breaks, which would hide what is wrapped."""
    return "".join((run.output + json.dumps(run.results)).split())


def assert_none_in(needles: Iterable[str], text: str, where: str) -> None:
    # Not `assert needle not in text`, which would print the secret.
    assert not any(needle in text for needle in needles), f"a secret is in {where}"


def test_traces_find_what_they_are_for() -> None:
    value = f"0123456789abcdef{ODD}fedcba9876543210"
    for before in ("", "x", "xy"):
        hidden = base64.b64encode(f"{before}{value} and more".encode()).decode()
        assert any(trace in hidden for trace in traces([value]))


# --- with sudo ------------------------------------------------------------------------------------


def test_administrator_with_sudo_deploys_everything(odd: Odd) -> None:
    assert odd.host.run("systemctl is-system-running --wait", check=False).stdout.strip() == "running"
    assert len(odd.first.changed) > 25
    again = odd.deployment.run("-y")
    assert again.changed == []
    assert odd.deployment.run().planned == []
    # Nothing of ours is left with the administrator.
    assert (
        odd.host.run("find /opt /etc /var/lib -xdev -user admin; ls -A /tmp | grep pyinfra", check=False).stdout == ""
    )


# --- the programs get exactly the secrets ---------------------------------------------------------


def test_synapse_reads_the_secrets_exactly(odd: Odd) -> None:
    program = (
        "import json, sys; from synapse.config.homeserver import HomeServerConfig; "
        "c = HomeServerConfig.load_config('', sys.argv[1:]); "
        "print(json.dumps([c.registration.registration_shared_secret, c.key.macaroon_secret_key, c.key.form_secret, "
        "c.voip.turn_shared_secret, c.email.email_smtp_pass], default=lambda value: value.decode()))"
    )
    arguments = "-c /etc/matrix-synapse/homeserver.yaml -c /etc/matrix-synapse/conf.d"
    command = f"cd / && /opt/matrix-synapse/current/bin/python -c {shlex.quote(program)} {arguments}"
    read = json.loads(odd.host.run(command, user="matrix-synapse").stdout.splitlines()[-1])
    assert read == [odd.secret(name) for name in [*GIVEN[:4], "smtp_password"]]


def test_sydent_reads_the_secrets_exactly(odd: Odd) -> None:
    program = (
        "import json; from sydent.config import SydentConfig; c = SydentConfig(); "
        "c.parse_config_file('/etc/sydent/sydent.conf'); k = c.crypto.signing_key; "
        "from signedjson.key import encode_signing_key_base64 as encoded; "
        "print(json.dumps([c.email.smtp_password, f'{k.alg} {k.version} {encoded(k)}']))"
    )
    command = f"cd / && /opt/sydent/current/bin/python -c {shlex.quote(program)}"
    read = json.loads(odd.host.run(command, user="sydent").stdout.splitlines()[-1])
    assert read == [odd.secret("smtp_password"), odd.secret("sydent_signing_key")]


def test_sliding_sync_proxy_reads_its_secret_exactly(odd: Odd) -> None:
    environment = odd.host.run("cat /proc/$(systemctl show -p MainPID --value sliding-sync)/environ").stdout
    assert f"SYNCV3_SECRET={odd.secret('sliding_sync_secret')}" in environment.split("\0")


@pytest.mark.parametrize("right", [True, False], ids=["right secret", "wrong secret"])
def test_coturn_reads_the_shared_secret_exactly(odd: Odd, right: bool) -> None:
    """It lets in who has credentials made with the secret, as Synapse makes them."""
    secret = odd.secret("turn_shared_secret") if right else "another"
    signed = Credentials.signed(f"{int(time.time()) + 600}:@test:{odd.host.domain}", secret)
    user = f"-u {shlex.quote(signed.username)} -w {shlex.quote(signed.password)}"
    client = f"turnutils_uclient -y -c -n 1 -m 1 {user} {odd.host.address}"
    done = odd.host.run(f"timeout 30 {client}", check=False)
    assert (done.returncode == 0) == right, done.stdout + done.stderr


# --- nobody else gets them ------------------------------------------------------------------------


def test_output_of_runs_has_no_secret(odd: Odd) -> None:
    needles = traces_of(odd.deployment.vault)
    # The files with the secrets were shown, and what was shown was masked.
    assert "static-auth-secret=*****" in odd.first.output
    assert_none_in(needles, shown(odd.first), "the output of the first run")
    assert_none_in(needles, shown(odd.deployment.run("-y", *TALKATIVE)), "the output of a run that changes nothing")


def test_command_lines_have_no_secret(odd: Odd) -> None:
    assert "base64 -d" in odd.command_lines, "nothing was to be seen of the run"
    needles = traces_of(odd.deployment.vault)
    assert_none_in(needles, "".join(odd.command_lines.split()), "the command lines during the first run")
    after = odd.host.run("cat /proc/[0-9]*/cmdline 2>/dev/null; true").stdout
    assert_none_in(needles, after, "the command lines of what runs")


def test_systemd_shows_no_secret(odd: Odd) -> None:
    needles = traces_of(odd.deployment.vault)
    units = odd.host.run("systemctl show --all '*'; systemctl show-environment").stdout
    assert "matrix-synapse" in units
    assert_none_in(needles, units, "systemctl show")
    # sudo writes every command that it runs into the journal.
    journal = odd.host.run("journalctl --all --no-pager -o verbose", timeout=120).stdout
    assert "COMMAND=" in journal
    assert_none_in(needles, "".join(journal.split()), "the journal")


def test_environments_have_no_secret_but_the_proxy_its_own(odd: Odd) -> None:
    """The proxy reads nothing but its environment, which only root and its own user can see."""
    find = f"grep -laF -f {HIDDEN}/needles /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3; true"
    odd.host.run(f"cat > {HIDDEN}/needles", stdin="\n".join(traces_of(odd.deployment.vault)))
    holders = odd.host.run(find).stdout.split()
    units = {odd.host.run(f"cat /proc/{pid}/cgroup").stdout.strip().rpartition("/")[2] for pid in holders}
    assert units == {"sliding-sync.service"}
    for pid in holders:
        assert odd.host.run(f"stat -c '%a %U' /proc/{pid}/environ").stdout == "400 sliding-sync\n"


def test_only_the_files_that_programs_read_hold_secrets(odd: Odd) -> None:
    odd.host.run(f"cat > {HIDDEN}/needles", stdin="\n".join(traces_of(odd.deployment.vault)))
    found = odd.host.run(
        "cd / && grep -rlaF --devices=skip --exclude-dir=secrets-of-the-test "
        f"-f {HIDDEN}/needles /etc /var /opt /run /tmp /root /home /usr/local 2>/dev/null | "
        "xargs stat -c '%n %a %U:%G'",
        timeout=120,
    ).stdout
    synapse = "640 root:matrix-synapse"
    assert sorted(found.splitlines()) == sorted(
        [
            f"/etc/matrix-synapse/conf.d/email.yaml {synapse}",
            f"/etc/matrix-synapse/secrets/form_secret {synapse}",
            f"/etc/matrix-synapse/secrets/macaroon_secret_key {synapse}",
            f"/etc/matrix-synapse/secrets/registration_shared_secret {synapse}",
            f"/etc/matrix-synapse/secrets/turn_shared_secret {synapse}",
            "/etc/sliding-sync/environment 600 root:root",
            "/etc/sydent/sydent.conf 640 root:sydent",
            "/etc/turnserver.conf 600 root:root",
        ]
    )
    directories = "/etc/matrix-synapse /etc/matrix-synapse/secrets /etc/sydent /etc/sliding-sync"
    modes = odd.host.run(f"stat -c %a {directories} /var/lib/matrix-synapse /var/lib/sydent").stdout.split()
    assert set(modes) == {"750"}
    signing_key = odd.host.run("stat -c '%a %U' /var/lib/matrix-synapse/signing.key").stdout
    assert signing_key == "600 matrix-synapse\n"


def test_controller_holds_them_only_encrypted(odd: Odd) -> None:
    needles = traces_of(odd.deployment.vault)
    files = [path for path in odd.deployment.directory.rglob("*") if path.is_file()]
    assert odd.deployment.vault in files
    for path in files:
        assert_none_in(needles, path.read_text(errors="replace"), path.name)


# The last one: it changes the secrets.
def test_rotation_shows_neither_old_nor_new(odd: Odd) -> None:
    needles = traces_of(odd.deployment.vault)
    vault = Vault.open(odd.deployment.vault)
    for name in GIVEN:
        if SECRETS[name].kind == "given":
            vault.set(name, secrets.token_hex(16))
        else:
            vault.rotate(name, force=True)
    vault.save()
    needles += traces_of(odd.deployment.vault)

    looked = odd.deployment.run("--dry", *TALKATIVE)
    rotated = odd.deployment.run("-y", *TALKATIVE)

    assert_none_in(needles, shown(looked), "the output of --dry --diff")
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
    ]
    assert odd.deployment.run("-y").changed == []
