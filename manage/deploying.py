"""A deploy that a command runs: its steps are printed as it goes, and everything that pyinfra says is kept in a file."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from manage.machines import ROOT, Deployment
from whole_file import cache_directory, made_cache, private_log

PYINFRA = str(Path(sys.executable).parent / "pyinfra")
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_ADVICE = re.compile(r"[.;] When (?:that is fixed|the machine is back), .*")


@dataclass
class Steps:
    """What pyinfra prints, line by line.

    step: that of deploy.py which it is at; shown: its lines, or those of the first that failed. problem: why the run fails.
    """

    step: str = ""
    shown: list[str] = field(default_factory=list)
    failed: bool = False
    problem: str = ""

    def read(self, line: str) -> str | None:
        """What to print about a line: a step that has changed something, or has failed."""
        line = _STYLE.sub("", line).rstrip()
        if begun := re.search(r"Starting .*operation: (?:.* \| )?(.+?)\s*$", line):
            self.step = begun[1]
            self.shown = self.shown if self.failed else []
            return None
        if line and not self.failed:
            self.shown.append(line)
        if error := re.search(
            r"pyinfra error: (.+)|^--> (\S+: .+ failed: .+|\S+: .+ When the machine is back, .+)", line
        ):
            self.problem = self.problem or _ADVICE.sub("", error[1] or error[2])
        outcome = re.search(r"^\s*\[(.+?)\]\s+(Success$|Error: executed \d+ commands)", line)
        if not outcome or not self.step:
            return None
        failed = outcome[2] != "Success"
        self.failed = self.failed or failed
        return f"  {self.step}, on {outcome[1]}{': failed' if failed else ''}"


def deploy(deployment: Deployment, log: str, environment: Mapping[str, str] | None = None, err: bool = False) -> str:
    """Run a deploy. Returns why it failed, in a sentence; "" if it did not. log: the name of the file with what it prints.

    environment: in addition to that of this process. err: whether the steps are printed on standard error.
    """
    path = cache_directory() / f"{log}-{deployment.path.stem}.log"
    try:
        opened = private_log(made_cache() / path.name)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}; set XDG_CACHE_HOME to another directory"
    steps = Steps()
    with (
        opened as file,
        subprocess.Popen(
            [PYINFRA, str(deployment.path), "deploy.py", "-y"],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout
        try:
            for line in process.stdout:
                file.write(line)
                if shown := steps.read(line):
                    click.echo(shown, err=err)
        except KeyboardInterrupt:  # pyinfra gets it as well, if it comes from the terminal
            process.terminate()
            return "it was interrupted"
    if not process.returncode:
        return ""
    for line in steps.shown:
        click.echo(f"    {line}", err=True)
    click.echo(f"Everything that was printed is in {path}.", err=True)
    return steps.problem or f"the deploy failed with status {process.returncode}"
