"""Python programs, each in a virtualenv of its own, locked with hashes.

A virtualenv is in /opt/<program>/<key>, where <key> identifies the lock file's content and the machine's Python. It is built by
a transient systemd unit, so that Debian packages are installed at the same time, and so that the build survives the end of the
run that started it. /opt/<program>/current switches to it once it is complete.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinfra.api import StringCommand

from operations.look import ask, operation
from operations.programs import Program
from operations.shell import Fact, quoted, script, shell_file

REQUIREMENTS = Path(__file__).parent.parent / "requirements"
# For the virtualenvs of version 0.1.0, whose .complete is empty: each file that a package recorded must have its size.
_RECORDED = """import importlib.metadata, sys
for package in importlib.metadata.distributions():
    for file in package.files or ():
        if file.size is not None and file.locate().stat().st_size != file.size:
            sys.exit(1)"""
_UV = REQUIREMENTS / "uv.txt"
_BUILD = REQUIREMENTS / "build.txt"


def locked(lock: str) -> dict[str, str]:
    """What requirements/<lock>.txt installs: distribution -> version; "": what requirements.lock does, on this computer."""
    text = (REQUIREMENTS / f"{lock}.txt" if lock else REQUIREMENTS.with_suffix(".lock")).read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==([^\s;]+)", text, re.MULTILINE))


def locked_files(lock: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """What requirements/<lock>.txt may install: distribution and version -> sha256 of each of its files. A machine takes one."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in (REQUIREMENTS / f"{lock}.txt").read_text().splitlines():
        if requirement := re.match(r"([\w.-]+)(?:\[.*\])?==([^\s;]+)", line):
            files = found.setdefault((requirement[1], requirement[2]), [])
        elif sha256 := re.match(r"\s+--hash=sha256:([0-9a-f]{64})", line):
            files.append(sha256[1])
    return {each: tuple(files) for each, files in found.items()}


@dataclass(frozen=True)
class Virtualenv:
    """A program's virtualenv.

    program: its directory below /opt.
    lock: name of the file in requirements/, without .txt.
    python: the machine's Python, such as "3.13": a virtualenv is bound to it.
    imports: module that must be importable before the virtualenv is used.
    source_only: distributions that exist only as source, to be built with requirements/build.txt; all others are wheels.
    more: names of files like lock, of what is added to it.
    """

    program: str
    lock: str
    python: str
    imports: str
    source_only: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    @property
    def locks(self) -> tuple[str, ...]:
        return (self.lock, *self.more)

    @property
    def requirements(self) -> bytes:
        return b"".join((REQUIREMENTS / f"{each}.txt").read_bytes() for each in self.locks)

    @property
    def distribution(self) -> str:
        """The distribution that it is for: the first in its .in file."""
        text = (REQUIREMENTS / f"{self.lock}.in").read_text()
        found = re.search(r"^([\w.-]+)", text, re.MULTILINE)
        assert found
        return found[1]

    @property
    def version(self) -> str:
        """The version of that distribution."""
        return locked(self.lock)[self.distribution]

    @property
    def key(self) -> str:
        """The directory's name: the same for the same packages on the same Python, built with the same options."""
        recipe = self.requirements + _UV.read_bytes() + _BUILD.read_bytes() + self._options().encode()
        return f"{hashlib.sha256(recipe).hexdigest()[:12]}-py{self.python}"

    @property
    def home(self) -> str:
        return f"/opt/{self.program}"

    @property
    def current(self) -> str:
        """The link that always leads to the virtualenv in use."""
        return f"{self.home}/current"

    @property
    def unit(self) -> str:
        """The transient unit that builds it."""
        return f"matrix-metal-build-{self.program}.service"

    def _options(self) -> str:
        options = "--only-binary :all:"
        for distribution in self.source_only:
            options += f" --no-binary {distribution}"
        if self.source_only:
            options += " --build-constraints build.txt"
        return options

    @property
    def shell(self) -> str:
        """operations/sh/virtualenv.sh, for this one."""
        return f"venv={quoted(f'{self.home}/{self.key}')}\n{shell_file('virtualenv')}"

    def build_script(self) -> str:
        """What the transient unit runs."""
        uv = f"/opt/uv/{hashlib.sha256(_UV.read_bytes()).hexdigest()[:12]}"
        return f"{self.shell}uv={uv} imports={quoted(self.imports)} options={quoted(self._options())}\nbuild\n"


@dataclass(frozen=True)
class BuildState:
    """complete: it can be used; building: its unit runs; current: name of the virtualenv in use."""

    complete: bool = False
    building: bool = False
    current: str = ""


class Builds(Fact[dict[str, BuildState]]):
    """The state of each virtualenv, by program."""

    def question(self, virtualenvs: Sequence[Virtualenv]) -> str:
        questions = (
            f"echo program {quoted(each.program)}; "
            f"if [ -e {quoted(f'{each.home}/{each.key}/.complete')} ]; then echo complete; "
            f"elif systemctl is-active {quoted(each.unit)} | grep -qE '^(active|activating)$'; then echo building; fi; "
            f'echo "current $(readlink {quoted(each.current)})"; '
            for each in virtualenvs
        )
        return f"{''.join(questions)}true"

    @staticmethod
    def default() -> dict[str, BuildState]:
        return {}

    def answer(self, lines: list[str]) -> dict[str, BuildState]:
        found: dict[str, list[str]] = {}
        for line in lines:
            if line.startswith("program "):
                about = found.setdefault(line.partition(" ")[2], [])
            else:
                about.append(line)
        return {
            program: BuildState("complete" in about, "building" in about, about[-1].partition(" ")[2])
            for program, about in found.items()
        }


class Intact(Fact[bool]):
    """Whether all files of a virtualenv are as they were when it was complete, and its module can be imported."""

    def question(self, virtualenv: Virtualenv) -> str:
        recorded = f"./bin/python -c {quoted(_RECORDED)} && ./bin/python -c {quoted(f'import {virtualenv.imports}')}"
        return (
            f'{virtualenv.shell}cd "$venv" && {{ read -r complete <.complete || true; }} && '
            f'if [ "$complete" ]; then [ "$complete" = "$(listing)" ]; else {recorded}; fi && echo intact; true'
        )

    @staticmethod
    def default() -> bool:
        return False

    def answer(self, lines: list[str]) -> bool:
        return lines == ["intact"]


def _states(*virtualenvs: Virtualenv) -> list[BuildState]:
    found: dict[str, BuildState] = ask(Builds, virtualenvs=virtualenvs)
    return [found.get(virtualenv.program, BuildState()) for virtualenv in virtualenvs]


def _start_build(virtualenv: Virtualenv) -> StringCommand:
    """Upload the locks and start the transient unit; the upload is one stream: base64 texts, separated by empty lines."""
    build = f"{virtualenv.home}/{virtualenv.key}.build"
    files = {
        "requirements.txt": virtualenv.requirements,
        "uv.txt": _UV.read_bytes(),
        "build.txt": _BUILD.read_bytes(),
        "build.sh": virtualenv.build_script().encode(),
    }
    unit = shlex.quote(virtualenv.unit)
    return script(
        "umask 022",
        f"rm -rf {quoted(build)}",
        f"mkdir -p {quoted(build)} /opt/uv",
        *(f'IFS= read -r content; printf %s "$content" | base64 -d >{quoted(f"{build}/{name}")}' for name in files),
        shell_file("proxy"),
        f"use_proxy; save_proxy {quoted(f'{build}/proxy')}",
        f"systemctl reset-failed --quiet {unit} 2>/dev/null || true",
        f"systemd-run --quiet --collect --no-block --unit={unit} --service-type=exec "
        f"--description={quoted(f'Build the virtualenv of {virtualenv.program}')} sh {quoted(f'{build}/build.sh')}",
        stdin="\n".join(base64.b64encode(content).decode() for content in files.values()),
    )


@operation()
def build_started(virtualenvs: Sequence[Virtualenv]) -> Generator[StringCommand, None, None]:
    """Every virtualenv is complete or being built. This needs only the machine's Python, so it can come early in a run."""
    for virtualenv, state in zip(virtualenvs, _states(*virtualenvs), strict=True):
        if not (state.complete or state.building):
            yield _start_build(virtualenv)


@operation()
def in_use(virtualenv: Virtualenv, program: Program, patience: int = 900) -> Generator[StringCommand, None, None]:
    """The virtualenv is complete, and `current` links to it. The previous one is kept; older ones are removed.

    program: what it is, and how to go back if it does not come up. patience: seconds to wait for the build.
    """
    (state,) = _states(virtualenv)
    if state.complete and state.current == virtualenv.key:
        return
    if not state.complete:
        if not state.building:
            yield _start_build(virtualenv)
        yield _wait(virtualenv, patience)
    yield script(virtualenv.shell, program.keep(virtualenv.key), f"switch {quoted(state.current or virtualenv.key)}")


def rebuilt_if_damaged(virtualenv: Virtualenv, patience: int = 900) -> Generator[StringCommand, None, None]:
    """Commands for an operation that is about to start the program: build the virtualenv again if files of it were lost.

    It is not done in every run, because to look takes a tenth of a second, and more if the files are not in memory.
    """
    if not ask(Intact, virtualenv=virtualenv):
        yield _start_build(virtualenv)
        yield _wait(virtualenv, patience)


def _wait(virtualenv: Virtualenv, patience: int) -> StringCommand:
    return script(virtualenv.shell, f"await_build {quoted(virtualenv.unit)} {patience} {quoted(virtualenv.program)}")
