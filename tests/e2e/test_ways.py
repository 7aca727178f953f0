"""The deploy and the verification connect in every way that pyinfra supports: on the machine itself, by another port, by an
alias, through a jump host, with an agent, with a key that has a passphrase. And the errors when a connection is lost.

The machine is deployed once, on itself; by each other way the deploy finds nothing to change, with the same vault.
"""

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.built import built
from tests.conftest import own
from tests.deployment import PYINFRA, ROOT, Deployment, Run
from tests.testbed import Host, Testbed

ROLES = ("postgres", "caddy", "coturn")
CHECKOUT = "/srv/matrix-metal"
PASSPHRASE = "a passphrase, with 'quotes' and $signs"  # noqa: S105
VERIFIED_ROLES = re.compile(r"test_postgres\.py.*test_caddy\.py|test_caddy\.py.*test_postgres\.py", re.DOTALL)


@dataclass(frozen=True)
class Machines:
    """target: the deployed machine. jump: the jump host. directory: that of the administrator, with inventory and vault."""

    target: Host
    jump: Host
    directory: Path

    @property
    def networks(self) -> list[str]:
        """Private, and the relay's users are there."""
        return [str(self.target.bed.network.subnet), str(self.target.bed.network.subnet6)]

    def deployment(self, **data: object) -> Deployment:
        """The same deployment by an inventory with this host data. name: the machine's name in it."""
        deployment = Deployment(
            self.directory,
            [self.target],
            {"server_name": self.target.domain, "tls": "internal", "private_networks": self.networks},
            name="home",
        )
        name = str(data.pop("name", self.target.name))
        deployment.inventory.write_text("".join(f"{role} = [({name!r}, {data!r})]\n" for role in ROLES))
        # Without the keys, the agent and the SSH configuration of the user who runs the tests.
        deployment.environment |= {"HOME": str(self.directory), "SSH_AUTH_SOCK": ""}
        return deployment

    def write_known_hosts(self, *hosts: Host) -> Path:
        """Write the keys of these hosts, or of the target, to known_hosts; returns its path."""
        path = self.directory / "known_hosts"
        path.write_text("".join(host.known_hosts.read_text() for host in hosts or (self.target,)))
        return path


@pytest.fixture(scope="module")
def machines(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with ThreadPoolExecutor() as pool:
        begun = pool.submit(testbed.up, own("ways-jump"))
        target, jump = testbed.up(own("ways"), layers=built(testbed, "trixie")), begun.result()
    yield Machines(target, jump, tmp_path_factory.mktemp("ways"))
    for host in (target, jump):
        host.down()


def verify(deployment: Deployment) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/host",
            "--inventory",
            str(deployment.inventory),
            "-p",
            "no:cacheprovider",
        ],
        cwd=ROOT,
        env={**os.environ, **deployment.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert_verified(done.returncode, done.stdout)


def assert_verified(status: int, output: str) -> None:
    assert status == 0 and "Nothing is wrong" in output, output[-4000:]
    assert VERIFIED_ROLES.search(output), output


def assert_reached(deployment: Deployment) -> None:
    """The deploy reaches the machine and finds nothing to change, and the verification and the commands reach it as well."""
    assert deployment.run("-y", timeout=120).changed == []
    verify(deployment)
    assert_answers(deployment.manage("status", "--json").stdout)


def assert_answers(status: str) -> None:
    [machine] = json.loads(status)["machines"]
    assert machine["reached"] and {unit["works"] for unit in machine["units"]} == {True}, machine


# --- on the machine itself ------------------------------------------------------------------------


def run_on_the_machine(host: Host, command: str, user: str = "root", check: bool = True) -> str:
    done = host.run(f"cd {CHECKOUT} && {command} 2>&1 </dev/null", user=user, check=False, timeout=300)
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return done.stdout


DEPLOY = ".venv/bin/pyinfra inventories/home.py ./deploy.py -y"
VERIFY = ".venv/bin/pytest -p no:cacheprovider tests/host --inventory inventories/home.py"


# The first test: it deploys.
def test_deploy_and_verify_on_the_machine_itself(machines: Machines) -> None:
    host = machines.target
    host.run(
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive "
        "apt-get install -qq -y --no-install-recommends make python3-venv",
        timeout=300,
    )
    excluded = [
        f"--exclude=./{name}" for name in (".venv", ".cache", ".git", "inventories/*.vault", "inventories/*.key")
    ]
    with subprocess.Popen(["tar", "-c", *excluded, "."], cwd=ROOT, stdout=subprocess.PIPE) as packing:
        subprocess.run(
            host.ssh(f"mkdir {CHECKOUT} && tar -x --no-same-owner -C {CHECKOUT}"), stdin=packing.stdout, check=True
        )
    host.run(f"cat > {CHECKOUT}/inventories/home.py", stdin="".join(f'{role} = ["@local"]\n' for role in ROLES))
    host.run(
        f"cat > {CHECKOUT}/group_data/home.py",
        stdin=f'server_name = "{host.domain}"\nprivate_networks = {machines.networks}\ntls = "internal"\n',
    )
    run_on_the_machine(host, "make setup")

    run_on_the_machine(host, DEPLOY)

    secret = run_on_the_machine(host, ".venv/bin/python manage.py home secrets show turn_shared_secret").strip()
    assert len(secret) > 20 and host.run(f"grep -cF {shlex.quote(secret)} /etc/turnserver.conf").stdout.strip() == "1"
    assert_verified(0, run_on_the_machine(host, VERIFY))
    # It ends with 1 for what else is wrong there: nothing is backed up.
    assert_answers(run_on_the_machine(host, ".venv/bin/python manage.py home status --json", check=False))


def test_vault_of_the_earlier_version_is_renamed(machines: Machines) -> None:
    host = machines.target
    for suffix in ("vault", "key"):
        host.run(f"cd {CHECKOUT}/inventories && mv home.{suffix} @local.{suffix}")
    run_on_the_machine(host, DEPLOY)
    assert host.run(f"ls {CHECKOUT}/inventories | grep -E 'vault|key'").stdout.split() == ["home.key", "home.vault"]


def test_deploy_and_verify_on_the_machine_itself_as_a_user_with_sudo(machines: Machines) -> None:
    host = machines.target
    host.run(f"chown -R admin: {CHECKOUT} && rm /etc/caddy/Caddyfile")

    done = run_on_the_machine(host, DEPLOY, user="admin")

    changes = [line for line in done.splitlines() if re.search(r"\| \S.*\s1\s+1\s+-\s+-", line)]
    assert [re.sub(r".*\| (.*?)\s{2,}.*", r"\1", line) for line in changes] == ["Configure Caddy", "Run Caddy"], done
    assert host.run("stat -c %U:%G /etc/caddy/Caddyfile").stdout.strip() == "root:caddy"
    assert_verified(0, run_on_the_machine(host, VERIFY, user="admin"))


def test_local_machine_beside_others_needs_an_address(machines: Machines, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, [machines.jump], {"server_name": "x.test", "tls": "internal"})
    data = deployment.inventory.read_text().partition("\n")[0]
    deployment.inventory.write_text(
        f'{data}\npostgres = ["@local"]\nsynapse = [("{machines.jump.name}", _data["{machines.jump.name}"])]\n'
    )
    run = deployment.run("-y", check=False)
    assert run.status == 1 and len(run.refusal.splitlines()) == 1, run.output
    assert f'beside "@local" where {machines.jump.name} reaches its database' in run.refusal
    assert "Connected" not in run.output


# --- over SSH -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vault(machines: Machines) -> Run:
    """Fetch the vault that was made on the machine, and run the deploy with it for the first time."""
    for suffix in ("vault", "key"):
        target = machines.directory / f"home.{suffix}"
        machines.target.get(f"{CHECKOUT}/inventories/home.{suffix}", target)
        target.chmod(0o600)
    secrets = "grep ^static-auth-secret= /etc/turnserver.conf"
    before = machines.target.run(secrets).stdout
    deployment = by_address(machines, ssh_key=str(machines.target.ssh_key))
    run = deployment.run("-y", timeout=120)
    assert machines.target.run(secrets).stdout == before
    return run


def test_a_deploy_from_another_version_of_python_changes_nothing(machines: Machines, vault: Run) -> None:
    """Python writes IPv6 networks of embedded IPv4 addresses in another way since 3.13: coturn would restart, and calls end."""
    python = "import sys; print(*sys.version_info[:2])"
    there = run_on_the_machine(machines.target, f".venv/bin/python -c '{python}'")
    if there.split() == [str(number) for number in sys.version_info[:2]]:
        pytest.skip("this computer has the machine's version")
    assert vault.changed == []


RENDER = "import pathlib, sys; from tests.render import render; render(pathlib.Path(sys.argv[1]), ['everything'])"


def test_every_supported_python_writes_the_same_files(tmp_path: Path) -> None:
    """Those that this computer has. What is different after a deploy from another computer would be restarted."""
    uv, written = str(Path(sys.executable).with_name("uv")), {}
    environment = dict(os.environ)
    if shutil.which("pyenv"):  # by itself it offers one version only
        offered = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout.split()
        environment["PYENV_VERSION"] = ":".join(offered)
    for version in ("3.11", "3.12", "3.13", "3.14"):
        find = [uv, "python", "find", "--no-python-downloads", version]
        found = subprocess.run(find, capture_output=True, text=True, env=environment)
        if found.returncode:
            continue
        virtualenv, into = tmp_path / version, tmp_path / f"of-{version}"
        python = virtualenv / "bin/python"
        subprocess.run([uv, "venv", "--quiet", "--python", found.stdout.strip(), virtualenv], check=True)
        lock = ["--require-hashes", "-r", str(ROOT / "requirements.lock")]
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *lock], check=True, timeout=300)
        subprocess.run([python, "-c", RENDER, into], cwd=ROOT, check=True, timeout=300)
        written[version] = {
            str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()
        }
    if len(written) < 2:
        pytest.skip(f"this computer has {' and '.join(written)} only")
    (first, files), *others = written.items()
    assert len(files) > 100
    for version, others_files in others:
        assert others_files == files, f"{version} writes other files than {first}"


def login_sources(host: Host, since: str) -> set[str]:
    """The addresses from which users logged in by SSH."""
    found = host.run(f"journalctl -q --since @{since} -o cat _COMM=sshd + _COMM=sshd-session").stdout
    return set(re.findall(r"^Accepted publickey for \w+ from (\S+)", found, re.MULTILINE))


@pytest.mark.usefixtures("vault")
def test_connect_by_another_port(machines: Machines) -> None:
    """The host key at that port is not known yet: the deploy adds it to known_hosts, the verification uses it."""
    machines.target.run("systemd-run --quiet --unit=another-ssh /usr/sbin/sshd -D -p 2222 -o PidFile=none")
    machines.target.run("until ss -Hlnt sport = :2222 | grep -q .; do sleep 0.05; done")
    try:
        deployment = machines.deployment(
            ssh_hostname=machines.target.address,
            ssh_port=2222,
            ssh_user="root",
            ssh_key=str(machines.target.ssh_key),
            ssh_known_hosts_file=str(machines.write_known_hosts(machines.jump)),
        )
        assert_reached(deployment)
        assert f"[{machines.target.address}]:2222 " in (machines.directory / "known_hosts").read_text()
    finally:
        machines.target.run("systemctl stop another-ssh")


def write_ssh_config(machines: Machines, through: str = "") -> Path:
    path = machines.directory / "ssh_config"
    common = (
        f'    User root\n    IdentityFile "{machines.target.ssh_key}"\n    IdentitiesOnly yes\n'
        f"    UserKnownHostsFile {machines.write_known_hosts(machines.target, machines.jump)}\n    StrictHostKeyChecking yes\n"
    )
    path.write_text(
        f"Host mymatrix\n    HostName {machines.target.address}\n{through}{common}"
        f"Host gate\n    HostName {machines.jump.address}\n{common}"
    )
    return path


@pytest.mark.usefixtures("vault")
@pytest.mark.parametrize("beside", ["name", "ssh_hostname"])
def test_connect_by_an_alias(machines: Machines, beside: str) -> None:
    assert_reached(machines.deployment(**{beside: "mymatrix"}, ssh_config_file=str(write_ssh_config(machines))))


def test_missing_ssh_config_is_reported(machines: Machines) -> None:
    """pyinfra itself would connect to a host whose name is the alias."""
    run = machines.deployment(name="mymatrix", ssh_config_file="/nowhere/ssh_config").run("-y", check=False)
    assert run.status == 1 and len(run.refusal.splitlines()) == 1, run.output
    assert "mymatrix cannot be reached: there is no ssh_config_file /nowhere/ssh_config" in run.refusal


@pytest.mark.usefixtures("vault")
@pytest.mark.parametrize("kind", ["jump", "command"])
def test_connect_through_a_jump_host(machines: Machines, kind: str) -> None:
    through = {
        "jump": "    ProxyJump gate\n",
        "command": f"    ProxyCommand ssh -F {machines.directory}/ssh_config -W %h:%p gate\n",
    }[kind]
    deployment = machines.deployment(name="mymatrix", ssh_config_file=str(write_ssh_config(machines, through)))
    ways = (
        lambda: deployment.run("-y", timeout=120),
        lambda: verify(deployment),
        lambda: assert_answers(deployment.manage("status", "--json").stdout),
    )
    for connect in ways:
        begin = machines.target.run("date +%s.%6N").stdout.strip()
        connect()
        assert login_sources(machines.target, begin) == {machines.jump.address}


@pytest.fixture(scope="module")
def encrypted_key(machines: Machines) -> Path:
    """A key with a passphrase, with which root may log in to the machine."""
    key = machines.directory / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", PASSPHRASE, "-C", "locked", "-f", str(key)], check=True)
    machines.target.run("cat >> /root/.ssh/authorized_keys", stdin=key.with_suffix(".pub").read_text())
    return key


@contextmanager
def agent(directory: Path, key: Path) -> Iterator[str]:
    """An SSH agent with the key, added by SSH_ASKPASS as on a desktop; yields its socket."""
    socket, askpass = directory / "agent", directory / "askpass"
    askpass.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(PASSPHRASE)}\n")
    askpass.chmod(0o700)
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL) as running:
        try:
            while not socket.exists():
                time.sleep(0.02)
            environment = {"SSH_AUTH_SOCK": str(socket), "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
            subprocess.run(
                ["ssh-add", "-q", str(key)],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                check=True,
                start_new_session=True,
            )
            yield str(socket)
        finally:
            running.terminate()


def by_address(machines: Machines, **data: object) -> Deployment:
    return machines.deployment(
        ssh_hostname=machines.target.address,
        ssh_user="root",
        ssh_known_hosts_file=str(machines.write_known_hosts()),
        **data,
    )


@pytest.mark.usefixtures("vault")
def test_connect_with_an_agent(machines: Machines, encrypted_key: Path) -> None:
    deployment = by_address(machines)
    with agent(machines.directory, encrypted_key) as socket:
        deployment.environment["SSH_AUTH_SOCK"] = socket
        assert_reached(deployment)


@pytest.mark.usefixtures("vault")
def test_connect_with_a_passphrase_from_the_environment(machines: Machines, encrypted_key: Path) -> None:
    deployment = by_address(machines, ssh_key=str(encrypted_key), ssh_key_password="...")  # noqa: S106
    written = deployment.inventory.read_text().replace("'...'", "os.environ['PASSPHRASE']")
    deployment.inventory.write_text(f"import os\n\n{written}")
    deployment.environment["PASSPHRASE"] = PASSPHRASE
    assert_reached(deployment)
    assert PASSPHRASE not in deployment.run("-y", "-vvv").output


def at_a_terminal(
    command: list[str], environment: Mapping[str, str], question: str, answer: str, timeout: float = 120
) -> tuple[int, str]:
    """Run a command at a terminal and answer its question; returns its exit status and its output."""
    child, terminal = pty.fork()
    if not child:
        os.chdir(ROOT)
        os.execve(command[0], command, {**os.environ, **environment})  # noqa: S606
    output, answered, deadline = b"", False, time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            output += os.read(terminal, 65536)
        except OSError:  # the command has ended
            break
        if not answered and question.encode() in output:
            os.write(terminal, f"{answer}\n".encode())
            answered = True
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.decode(errors="replace")


@pytest.mark.usefixtures("vault")
def test_connect_with_a_passphrase_typed_at_a_terminal(machines: Machines, encrypted_key: Path) -> None:
    deployment = by_address(machines, ssh_key=str(encrypted_key))
    status, output = at_a_terminal(
        deployment.command("-y"), deployment.environment, "Enter password for private key", PASSPHRASE
    )
    assert status == 0 and re.search(r"Grand total .* - ", output), output[-3000:]
    assert PASSPHRASE not in output
    command = [sys.executable, "-m", "pytest", "tests/host", "--inventory", str(deployment.inventory)]
    assert_verified(*at_a_terminal(command, deployment.environment, "Enter passphrase for key", PASSPHRASE))


def test_passphrase_without_a_terminal_is_refused(machines: Machines, encrypted_key: Path) -> None:
    run = by_address(machines, ssh_key=str(encrypted_key)).run("-y", check=False)
    assert run.status == 1 and len(run.refusal.splitlines()) == 1 and "Traceback" not in run.output, run.output
    assert f"{machines.target.name} cannot be reached: its ssh_key has a passphrase" in run.refusal


# --- runs that fail on some machines --------------------------------------------------------------


@pytest.mark.usefixtures("vault")
def test_run_that_fails_on_one_of_two_machines(machines: Machines) -> None:
    """The other is deployed completely, and the last line has the machine, the operation and the cause."""
    working, failing = machines.target, machines.jump
    deployment = Deployment(
        machines.directory,
        [working, failing],
        {"server_name": working.domain, "tls": "internal", "private_networks": machines.networks},
        {"postgres": [failing.name], "caddy": [working.name], "coturn": [working.name]},
        name="home",
    )
    broken = "/etc/apt/apt.conf.d/99broken"
    failing.run(f"echo nonsense > {broken}")

    run = deployment.run("-y", check=False)

    assert run.status == 1 and "Traceback" not in run.output
    assert run.results, run.output
    operations = run.results["results"]["operations"]
    assert [each["name"] for each in operations if working.name in each["error"]] == []
    assert {"Run Caddy", "Run coturn"} <= {
        each["name"].rpartition(" | ")[2] for each in operations if working.name in each["no_change"]
    }
    last = run.output.strip().splitlines()[-1]
    assert re.search(rf"{failing.name}: Install Python .* failed: E: .*run the same command again", last), run.output

    failing.run(f"rm {broken}")
    written = deployment.inventory.read_text()
    deployment.inventory.write_text(written.replace(f"'{failing.address}'", f"'{failing.address}', 'ssh_port': 9"))
    unreachable = deployment.run("-y", check=False)
    assert unreachable.status == 1 and len(unreachable.refusal.splitlines()) == 1, unreachable.output
    assert f"{failing.name} cannot be reached, see above; nothing was touched" in unreachable.refusal
    assert f"--exclude {failing.name}" in unreachable.refusal


# --- a lost connection ----------------------------------------------------------------------------


@pytest.mark.usefixtures("vault")
def test_lost_connection_ends_the_run_within_a_minute(machines: Machines, tmp_path: Path) -> None:
    """The last line tells how to continue. A run through a jump host ends as well, though the jump host still answers."""
    host, lock = machines.target, "/var/lib/dpkg/lock-frontend"
    deployment = by_address(machines, ssh_key=str(host.ssh_key))
    inventory = tmp_path / "behind.py"
    through = write_ssh_config(machines, "    ProxyJump gate\n")
    inventory.write_text(f'postgres = [("mymatrix", {{"ssh_config_file": "{through}"}})]\n')
    # The run has a package to install, and waits for the lock.
    host.run("apt-get purge -qq -y python3-venv", timeout=120)
    host.run(f"systemd-run --quiet --unit=busy flock {lock} sleep 600; while flock -n {lock} true; do sleep 0.05; done")
    through_jump = subprocess.Popen(
        [PYINFRA, str(inventory), "exec", "--", "touch /run/begun; sleep 300"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running = deployment.start("-y")
    try:
        host.run("until [ -e /run/begun ] && pgrep -x apt-get; do sleep 0.1; done", timeout=30)

        host.cut_off()
        begin = time.monotonic()
        output, _ = running.communicate(timeout=120)
        took = time.monotonic() - begin
        jump_output, _ = through_jump.communicate(timeout=30)
    finally:
        for process in (running, through_jump):
            process.kill()
        host.reconnect()
        host.run("systemctl stop busy")

    assert took < 60 and running.returncode == 1, output
    last = output.splitlines()[-1]
    for words in (
        f"{host.name}: Install Python",
        "has not answered for 40 s",
        "run the same command again: it goes on",
    ):
        assert words in last, output
    assert through_jump.returncode == 1, jump_output
    assert "Traceback" not in output + jump_output
    deployment.run("-y")
