"""One run at a time on each machine: a run that changes something holds a lock there for as long as it is connected."""

import getpass
import json
import os
import socket
import subprocess
import threading
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import gevent
from pyinfra.api.host import Host

from compat import Beside, Refused, add_final_line, connection_error
from operations.look import look_at
from operations.same_data import wrong_database
from operations.shell import answer_lines, lasting_command, quoted, shell_file
from settings import settings_of

ROOT = Path(__file__).parent.parent
# Seconds from one sign of life to the next: the machine waits for 30.
INTERVAL = 5


class Lock(NamedTuple):
    """The answer of a machine, and what it says about the other run.

    answer: "locked", "busy", "later", "updating", "alone" (no lock, because nothing can run beside the run's commands), or "" for
    none.
    """

    answer: str = ""
    other: str = ""
    program: Beside | None = None


class Locks:
    """The locks of one run."""

    def __init__(self) -> None:
        self._held: dict[Host, Beside] = {}
        self._version: gevent.Greenlet | None = None

    def take(self, hosts: Sequence[Host]) -> None:
        """Lock the machines, or raise Refused. Meanwhile they are asked what the operations need to know (operations/look.py).

        A machine is asked before it is locked: that is right, because it says if somebody else has begun since it was asked
        for its state, and preflight has refused if somebody was at work then.
        """
        # git is asked while the machines are.
        self._version = gevent.spawn(this_version)
        jobs = {host: gevent.spawn(_refusal_of, _lock_and_look, host) for host in hosts}
        gevent.joinall(jobs.values())
        answers = {host: job.get() for host, job in jobs.items()}
        if refused := [answer for answer in answers.values() if isinstance(answer, Refused)]:
            raise refused[0]
        locks = {host: answer for host, answer in answers.items() if isinstance(answer, Lock)}
        if lines := [line for host, lock in locks.items() if (line := _why_not(host, lock))]:
            raise Refused("\n".join(lines))
        if lines := [f"{host.name}: {line}; nothing was touched" for host in hosts for line in wrong_database(host)]:
            raise Refused("\n".join(lines))
        self._held = {host: lock.program for host, lock in locks.items() if lock.program}
        for program in self._held.values():
            threading.Thread(target=_keep, args=(program,), daemon=True).start()

    def check(self) -> None:
        """Raise Refused if a lock was lost though the connection was not: this computer was suspended, for example."""
        for host, program in self._held.items():
            if program.ended and not connection_error(host):
                raise Refused(
                    f"{host.name}: this computer has sent no sign of life for too long, and another run may have begun: "
                    "run the same command again"
                )

    def finish(self, hosts: Sequence[Host]) -> None:
        """Leave a note on these machines that the run has ended there without a failure, for `manage.py NAME status`."""
        done = {host: self._held[host] for host in hosts if host in self._held}
        # A greenlet that has ended is false.
        if not done or self._version is None:
            return
        note = json.dumps({"by": who(), **self._version.get()})
        for program in done.values():
            program.send(f"{note}\n")


def this_version() -> dict[str, str]:
    """The version that is deployed, and the commit, if it was got with git."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    try:
        told = subprocess.run(
            ["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        told = ""
    return {"version": version, "commit": told}


def who() -> str:
    """The user and the computer that this run is started on, in printable characters."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user ID without a name
        user = str(os.getuid())
    return "".join(letter for letter in f"{user}@{socket.gethostname()}" if letter.isprintable())[:200]


def at_work(other: str) -> str:
    """What a run says that comes second. other: who is at work, and since when."""
    return f"another run is at work: {other or 'somebody'}; nothing was touched; run again when it has ended"


def _why_not(host: Host, lock: Lock) -> str:
    match lock.answer:
        case "locked":
            return ""
        case "alone":
            add_final_line(
                f"{host.name} was not locked, because its sshd allows fewer than three sessions for a connection (MaxSessions): "
                "a second deploy, or security updates that began meanwhile, would not have been noticed"
            )
            return ""
        case "busy":
            return f"{host.name}: {at_work(lock.other)}"
        case "later":
            return (
                f"{host.name}: somebody else has run a deploy since this run looked at the machine: {lock.other}; "
                "nothing was touched; run the same command again"
            )
        case "updating":
            return (
                f"{host.name}: since this run looked at the machine, it has begun to install security updates "
                "(apt-daily-upgrade.service); nothing was touched; run the same command again, which waits for them"
            )
    return (
        f"{host.name}: the lock in /run/matrix-metal cannot be taken: {lock.other or 'no answer'}; nothing was touched"
    )


def _refusal_of(job: Callable[[Host], Lock], host: Host) -> Lock | Refused:
    """What the job returns, or its Refused: an error that leaves a greenlet is printed with a traceback."""
    try:
        return job(host)
    except Refused as refused:
        return refused


def _lock_and_look(host: Host) -> Lock:
    machine = settings_of(host).machine
    sudo = machine.user != "root"
    command = lasting_command(f"{shell_file('lock')}exec 2>&1\nhold {quoted(who(), machine.last_run)}")
    # A session counts for a moment longer than its command: the run's commands need two.
    if machine.sessions < 3 and host.name != "@local":
        look_at(host, _sudo=sudo)
        return Lock("alone")
    program = Beside(host, command, sudo)
    reading = gevent.spawn(_answer, program)
    look_at(host, _sudo=sudo)
    answer, _, other = str(reading.get()).partition(" ")
    return (
        Lock(answer, other, program)
        if answer in ("locked", "busy", "later", "updating")
        else Lock("", f"{answer} {other}".strip())
    )


def _answer(program: Beside) -> str:
    """The first line that the program prints behind what a profile prints."""
    lines: list[str] = []
    while not answer_lines(lines) and (line := program.read_line()):
        lines.append(line)
    return "".join(answer_lines(lines) or []).strip()


def _keep(program: Beside) -> None:
    pause = threading.Event()
    while program.send("\n"):
        pause.wait(INTERVAL)
