"""The machines of an inventory for the tests: their settings without secrets, and a connection over SSH.

Nothing here writes to a machine or opens the vault: whoever verifies a deployment does not need its secrets.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import testinfra
from testinfra.host import Host

from operations.machine import Machine as MachineFact
from operations.machine import MachineState
from operations.shell import answer_lines, question_command
from roles import ROLES
from settings import Neighbour, SettingError, Settings, choices_from, mistakes
from tests.host.shell import Shell
from vault import WithoutSecrets

ROOT = Path(__file__).parent.parent.parent
PYINFRA = str(Path(sys.executable).parent / "pyinfra")


# The program that ssh runs to get a password; the passwords are in its environment, which only we and root can read.
ASKPASS = """#!/bin/sh
case $1 in *passphrase*) printf '%s\\n' "$VERIFY_key_password" ;; *) printf '%s\\n' "$VERIFY_password" ;; esac
"""


def _at_a_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class InventoryError(Exception):
    """Why the inventory cannot be used."""


def _with_fixed_environment(host: Host) -> Host:
    """Make its commands run as in a deploy: the machine's language and the user's profile do not matter."""
    backend = host.backend
    quote, get_command, run = backend.quote, backend.get_command, backend.run

    def run_for_answer(command: str, *words: str, **options: Any) -> Any:
        result = run(command, *words, **options)
        lines = answer_lines(result.stdout.splitlines(keepends=True))
        return replace(result, _stdout="" if lines is None else "".join(lines))

    backend.get_command = lambda command, *words: get_command(question_command(quote(command, *words)))
    backend.run = run_for_answer
    return host


class Machine:
    """One machine of the inventory. The connection is made when it is first needed."""

    def __init__(self, inventory: "Inventory", name: str, data: Mapping[str, Any]) -> None:
        self.inventory, self.name, self.data = inventory, name, data
        self._opened = False
        self._shells: list[Shell] = []

    def __str__(self) -> str:
        return self.name

    @property
    def roles(self) -> list[str]:
        return [role for role in ROLES if self.name in self.inventory.groups.get(role, ())]

    @cached_property
    def state(self) -> MachineState:
        """The state of the machine, as a deploy sees it."""
        fact, unreachable = MachineFact(), ""
        names = dict.fromkeys(name for _, name in self._settings_with(MachineState()).reached)
        try:
            result = self._connection(sudo=False).run(fact.question(names))
        except RuntimeError as error:
            unreachable = getattr(error.args[0], "stderr", "").strip() or str(error)
        if unreachable:
            pytest.fail(f"{self.name} cannot be reached over SSH: {unreachable}", pytrace=False)
        return fact.answer(str(result.stdout).splitlines())

    @cached_property
    def host(self) -> Host:
        """testinfra's connection to it, as root."""
        if not self.state.user:
            pytest.fail(f"{self.name}: the user's shell there does not run commands", pytrace=False)
        if not self.state.root:
            pytest.fail(
                f"{self.name}: connected as {self.state.user}, who is not root and has no sudo without a password",
                pytrace=False,
            )
        host = self._connection(sudo=self.state.user != "root")
        # Without it, each command is a session of its own.
        if (shell := self._shell(host)).begins():
            host.backend.run = shell.run
        return host

    def _shell(self, host: Host) -> Shell:
        """The shell for all commands but the first."""
        leading = ["sh", "-c"] if self.local else ["ssh", *self._shared_options(), self._target]
        self._shells.append(Shell(host.backend, leading))
        return self._shells[-1]

    @cached_property
    def settings(self) -> Settings:
        """The settings of this machine."""
        return self._settings_with(self.state)

    def _settings_with(self, state: MachineState) -> Settings:
        neighbours = {
            other.name: Neighbour(other.data.get("address") or other.data.get("ssh_hostname") or other.name)
            for other in self.inventory.machines
            if other is not self
        }
        settings = Settings(
            choices_from(self.data, self.inventory.deployment),
            self.inventory.deployment,
            self.inventory.groups,
            self.name,
            state,
            neighbours,
            self.data.get("ssh_hostname"),
        )
        settings.vault = WithoutSecrets()
        return settings

    @property
    def local(self) -> bool:
        """Whether it is this computer."""
        return self.name == "@local"

    def _connection(self, sudo: bool) -> Host:
        if self.local:
            return _with_fixed_environment(testinfra.get_host("local://", sudo=sudo))
        if not self._opened:
            self._open()
        target, arguments = f"ssh://{quote(self._target, safe='')}", shlex.join(self._shared_options())
        return _with_fixed_environment(testinfra.get_host(target, sudo=sudo, ssh_extra_args=arguments))

    def _shared_options(self) -> list[str]:
        return self._options(BatchMode="yes", ControlMaster="auto", ControlPersist="60")

    @property
    def _target(self) -> str:
        """The name that pyinfra, too, looks up in the SSH configuration."""
        return str(self.data.get("ssh_hostname") or self.name)

    def _options(self, **more: str) -> list[str]:
        """OpenSSH's options for the data that pyinfra takes from the inventory."""
        # All checks share one connection, which is ten times as fast.
        options = {
            "LogLevel": "ERROR",
            "ConnectTimeout": "10",
            # A machine that is gone is noticed within a minute.
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "3",
            "ControlPath": str(self._control_path),
            "User": self.data.get("ssh_user"),
            "Port": self.data.get("ssh_port"),
            "IdentityFile": self.data.get("ssh_key"),
            # With many keys in an agent, the machine would refuse further attempts before the right key is tried.
            "IdentitiesOnly": "yes" if self.data.get("ssh_key") else None,
            "IdentityAgent": "none" if self.data.get("ssh_allow_agent") is False else None,
            "UserKnownHostsFile": self.data.get("ssh_known_hosts_file"),
            "StrictHostKeyChecking": self.data.get("ssh_strict_host_key_checking"),
            **more,
        }
        arguments = [word for key, value in options.items() if value for word in ("-o", f'{key}="{value}"')]
        if configuration := self.data.get("ssh_config_file"):
            arguments += ["-F", str(ROOT / str(configuration))]
        return arguments

    def _open(self) -> None:
        """Open the shared connection, if that needs a password: from the inventory, or asked for by ssh at the terminal."""
        self._opened = True
        secrets = {f"VERIFY_{name}": str(self.data.get(f"ssh_{name}") or "") for name in ("key_password", "password")}
        if not any(secrets.values()) and not (self.data.get("ssh_key") and _at_a_terminal()):
            return
        environment = dict(os.environ)
        if given := any(secrets.values()):
            askpass = self.inventory.sockets / "askpass"
            askpass.write_text(ASKPASS)
            askpass.chmod(0o700)
            # DISPLAY and a session of its own: OpenSSH before 8.4 uses the program only with these.
            environment |= {"SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":", **secrets}
        # It stays open until the end of the verification, so that nothing is asked twice.
        shared = self._options(NumberOfPasswordPrompts="1", ControlMaster="yes", ControlPersist="yes")
        subprocess.run(
            ["ssh", *shared, self._target, "true"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # ssh prints its question to the terminal, not to stderr.
            stderr=subprocess.DEVNULL,
            start_new_session=given,
            check=False,  # the first command on the machine reports what is wrong
        )

    @property
    def _control_path(self) -> Path:
        return self.inventory.sockets / str(self.inventory.machines.index(self))

    def disconnect(self) -> None:
        """End the shells and the shared connection."""
        for shell in self._shells:
            shell.close()
        if self._control_path.exists():
            command = ["ssh", "-o", f"ControlPath={self._control_path}", "-O", "exit", self._target]
            subprocess.run(command, capture_output=True, check=False)


class Inventory:
    """An inventory of pyinfra's. Raises InventoryError if it cannot be read, or if a deploy would refuse it."""

    def __init__(self, path: Path, environment: Mapping[str, str] | None = None) -> None:
        self.path = path.resolve()
        self.deployment = self.path.stem
        listed = self._listed({**os.environ, **(environment or {})})
        self.machines = [Machine(self, each["name"], each["data"]) for each in listed]
        self.groups: dict[str, list[str]] = {}
        for each in listed:
            # pyinfra lists the groups of @local twice.
            for group in dict.fromkeys(each["groups"]):
                self.groups.setdefault(group, []).append(each["name"])
        if wrong := self._mistakes():
            raise InventoryError("\n".join(wrong))
        # Short, because the path of a socket may have no more than 107 characters.
        self.sockets = Path(tempfile.mkdtemp(prefix="verify-"))

    def _listed(self, environment: Mapping[str, str]) -> list[dict[str, Any]]:
        """Ask pyinfra in a separate process: importing it patches the process for gevent."""
        if not self.path.is_file():
            raise InventoryError(
                f"{self.path} is not there: give the path of an inventory, such as inventories/prod.py"
            )
        done = subprocess.run(
            [PYINFRA, str(self.path), "debug-inventory", "--json"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        try:
            listed: list[dict[str, Any]] = json.loads(done.stdout)
        except json.JSONDecodeError:
            raise InventoryError(f"pyinfra cannot read {self.path}:\n{done.stderr.strip()}") from None
        return listed

    def _mistakes(self) -> list[str]:
        """Mistakes for which a deploy would refuse the inventory."""
        for machine in self.machines:
            try:
                choices = choices_from(machine.data, self.deployment)
            except SettingError as error:
                return str(error).splitlines()
            settings = Settings(choices, self.deployment, self.groups, machine.name, MachineState(release="13"))
            if wrong := mistakes(settings):
                return wrong
        return [] if self.machines else [f"{self.path} has no machines"]

    def playing(self, role: str | None) -> list[Machine]:
        """The machines that play the role; None: those that play any."""
        return [machine for machine in self.machines if (role in machine.roles if role else machine.roles)]

    def close(self) -> None:
        for machine in self.machines:
            machine.disconnect()
        shutil.rmtree(self.sockets, ignore_errors=True)
