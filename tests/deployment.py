"""A deployment for tests: an inventory and its group data in a directory, and throw-away hosts to deploy to.

Deployment(directory, hosts=[host], ...) runs pyinfra's command line, as an administrator does.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roles import ROLES
from tests import prepared
from tests.testbed import Host

# What complete deployments of the tests have. With MAS nobody logs in to Synapse with a password: tests/e2e/test_mas.py has it.
# The backup needs a target: tests/e2e/test_backup.py. Behind the firewall, other tests would not notice what listens without it.
# Security updates would come in the middle of another test, and bans for wrong passwords. Debian 12 has no ntfy: that is in
# tests/e2e/test_removal.py.
_ELSEWHERE = ("ntfy", "firewall", "bans", "updates", "backup")
EVERYTHING = {name: role for name, role in ROLES.items() if name not in ("mas", *_ELSEWHERE)}
WITH_MAS = {name: role for name, role in ROLES.items() if name not in _ELSEWHERE}
ROOT, PYINFRA = prepared.ROOT, prepared.PYINFRA
# Release -> the roles that it has packages for.
AVAILABLE = {
    name: {role.name: role for role in ROLES.values() if number in role.debian}
    for name, number in {"trixie": "13", "bookworm": "12"}.items()
}


@dataclass(frozen=True)
class Run:
    """What one run of pyinfra did. changed: names of the operations that changed something, without their file's name."""

    status: int
    output: str
    results: dict[str, Any] = field(repr=False)

    @property
    def changed(self) -> list[str]:
        operations = (self.results.get("results") or {}).get("operations", [])
        return [_name(operation) for operation in operations if operation["success"]]

    @property
    def planned(self) -> list[str]:
        """Operations that a run without -y would change."""
        return [_name(operation) for operation in self.results.get("plan", []) if operation.get("hosts_with_change")]

    @property
    def refusal(self) -> str:
        """The error message of the run, without pyinfra's progress and colours."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.output)
        _, _, message = plain.partition("pyinfra error: ")
        return message.strip()


def _name(operation: Mapping[str, Any]) -> str:
    name = operation.get("name") or ", ".join(operation.get("names", []))
    return str(name).rpartition(" | ")[2]


class Deployment:
    """An administrator's own directory: <name>.py, group_data/<name>.py, <name>.vault, <name>.key and <name>.lock.

    hosts: the machines; the first plays every role of EVERYTHING unless roles says otherwise (role -> names of machines).
    user: the user to connect as: "root", or "admin", who has sudo.
    settings: group data.
    root: the checkout that is deployed; it may be changed between two runs.
    """

    def __init__(
        self,
        directory: Path,
        hosts: Sequence[Host],
        settings: Mapping[str, Any],
        roles: Mapping[str, Sequence[str]] | None = None,
        user: str = "root",
        name: str = "trial",
        root: Path = ROOT,
    ) -> None:
        self.directory, self.hosts, self.name, self.user, self.root = directory, list(hosts), name, user, root
        self.inventory = directory / f"{name}.py"
        self.vault = directory / f"{name}.vault"
        self.environment: dict[str, str] = {}
        (directory / "group_data").mkdir(parents=True, exist_ok=True)
        self.choose(**settings)
        self.assign(roles if roles is not None else {role: [hosts[0].name] for role in EVERYTHING})

    def choose(self, **settings: Any) -> None:
        """Replace the group data."""
        self.settings = settings
        chosen = {"vault": str(self.vault), **settings}
        lines = [f"{name} = {value!r}\n" for name, value in chosen.items()]
        (self.directory / "group_data" / f"{self.name}.py").write_text("".join(lines))

    def assign(self, roles: Mapping[str, Sequence[str]]) -> None:
        """Replace the inventory."""
        data = {
            host.name: {
                "ssh_hostname": host.address,
                "ssh_user": self.user,
                "ssh_key": str(host.ssh_key),
                "ssh_known_hosts_file": str(host.known_hosts),
            }
            for host in self.hosts
        }
        lines = [f"_data = {data!r}\n"]
        lines += [
            f"{role} = [(name, _data.get(name, {{}})) for name in {list(names)!r}]\n" for role, names in roles.items()
        ]
        self.inventory.write_text("".join(lines))

    def command(self, *options: str) -> list[str]:
        return [PYINFRA, str(self.inventory), "deploy.py", *options]

    def start(self, *options: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start a run, without waiting for it."""
        return subprocess.Popen(
            self.command(*options),
            cwd=self.root,
            env=self._environ(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str, check: bool = True, timeout: float = 900) -> Run:
        """Run pyinfra. options: `-y` deploys, `--dry` only plans; others as pyinfra takes them. check: raise if it fails."""
        done = self._done(self.command("--json", *options), self.root, timeout)
        try:
            results = json.loads(done.stdout)
        except json.JSONDecodeError:
            results = {}
        run = Run(done.returncode, done.stderr, results)
        if check and done.returncode:
            raise AssertionError(f"pyinfra exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return run

    def verify(self, tests: str = "tests/host") -> tuple[int, str]:
        """Exit status and output of `pytest tests/host --inventory`, or of some of these tests."""
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tests, "--inventory"]
        done = subprocess.run(
            [*command, self.inventory],
            cwd=self.root,
            env={**os.environ, **self.environment, "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    def manage(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run manage.py on this deployment, in another directory. stdin: None: there is none."""
        command = [sys.executable, str(self.root / "manage.py"), str(self.inventory), *arguments]
        return self._done(command, self.directory, 900, stdin)

    def _done(
        self, command: list[str], directory: Path, timeout: float, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = self._environ()
        if prepared.can_run(command, self.root, environment):
            return prepared.run(command, cwd=directory, env=environment, stdin=stdin, timeout=timeout)
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            command, cwd=directory, env=environment, **given, capture_output=True, text=True, timeout=timeout
        )

    def _environ(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "MATRIX_VAULT_KEY"}
        return {**inherited, **self.environment}
