"""python manage.py NAME sbom"""

import json
import re
import tomllib
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email import message_from_string
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import click
import gevent
from packaging.utils import canonicalize_name
from rich.table import Table
from rich.text import Text

import whole_file
from compat import Refused
from manage.look import LAST_DEPLOY
from manage.machines import ROOT, Deployment, Machine
from manage.outdated import needed_packages
from manage.output import plain, print_text, printable
from operations.lock import this_version
from operations.look import Answers, Question
from operations.shell import Fact, shell_file
from operations.virtualenvs import locked_files
from releases import Release
from roles import ROLES
from settings import Settings

# Of CycloneDX: https://cyclonedx.org/docs/1.6/json/
SPEC = "1.6"
# Seconds for a machine.
PATIENCE = 60
# The names of properties begin with it, so that nobody else's are called the same.
OURS = "matrix-metal"
# Names of a licence's components that the table shows.
EXAMPLES = 3
# Where people find a licence that no program can read.
_ELSEWHERE: Mapping[str, tuple[str, str]] = {
    "debian": ("Debian's packages", "see /usr/share/doc/NAME/copyright on a machine that has them"),
    "python": ("Python packages", "see https://pypi.org/project/NAME"),
    "release": ("Programs from release pages", "see the pages of their projects"),
}
# The line after an answer.
_END = "--- end ---"
_SYSTEM = ". /etc/os-release && echo $ID $VERSION_ID $(dpkg --print-architecture)"
_PACKAGES = (
    "dpkg-query --show --showformat "
    r"'${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n'"
)
_QUESTIONS = {
    "system": _SYSTEM,
    "debian": _PACKAGES,
    "licences": "debian_licences",
    "python": "python_packages",
    "releases": "release_files",
    "deployed": f"cat {LAST_DEPLOY}",
}

Kind = Literal["debian", "python", "release", "project"]


@dataclass(frozen=True)
class Component:
    """Something that is installed.

    ref: what it is called in the document. licences: their names, as its authors have them; of an SPDX expression, that alone.
    sha256: of the file it was made from. locked: the same, if only several are known, of which one is it. roles: those that asked
    for it ("all": every machine has it), unless it came along with something else.
    """

    kind: Kind
    name: str
    version: str
    purl: str
    ref: str
    licences: tuple[str, ...] = ()
    spdx: bool = False
    program: bool = False
    sha256: str = ""
    locked: tuple[str, ...] = ()
    roles: frozenset[str] = frozenset()
    commit: str = ""


@dataclass(frozen=True)
class Installed:
    """What is installed on a machine. debian: its release. beside: ref of a program -> refs of what came along with it."""

    machine: str
    roles: tuple[str, ...]
    debian: str
    architecture: str
    components: tuple[Component, ...]
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@click.command()
@click.option("--output", metavar="FILE", help="Write it into this file, as a whole or not at all.")
@click.option("--licences", is_flag=True, help="Show the licences, a table for people.")
@click.pass_obj
def sbom(deployment: Deployment, output: str | None, licences: bool) -> None:
    """Print a software bill of materials: what is installed on the machines.

    It is JSON of CycloneDX, with versions, hashes and licences, by what the machines say now. Nothing is changed, and the vault
    is not needed. While a machine does not answer there is none.
    """
    path = None if output is None else _checked(deployment.called_in / Path(output).expanduser())
    machines = deployment.every_machine()
    jobs = [gevent.spawn(_of_machine, machine) for machine in machines]
    answers = [job.get() for job in jobs]
    if silent := [each for each in answers if isinstance(each, str)]:
        raise Refused(f"there is no bill of materials without every machine: {'; '.join(silent)}")
    found = [each for each in answers if isinstance(each, Installed)]
    if path or not licences:
        text = json.dumps(document(deployment.path.stem, machines[0].settings.server_name, found), indent=2)
        if path:
            _write(path, f"{text}\n".encode())
            number = len(_merged(found))
            click.echo(f"{output}: {number} components on {len(found)} machine{'s' if len(found) > 1 else ''}")
        else:
            click.echo(text)
    if licences:
        print_licences(_merged(found))


def _checked(path: Path) -> Path:
    """A path to write to. Raises Refused, so that nobody waits in vain."""
    if path.exists() and not path.is_file():
        raise Refused(f"--output {path}: it is not a file")
    if not path.parent.is_dir():
        raise Refused(f"--output {path}: there is no directory {path.parent}")
    return path


def _write(path: Path, content: bytes) -> None:
    try:
        whole_file.replace(path, content, path.stat().st_mode & 0o777 if path.exists() else 0o644)
    except OSError as error:
        raise Refused(f"--output {path}: it cannot be written: {error.strerror}") from None


def _of_machine(machine: Machine) -> Installed | str:
    """What is installed on it, or why that is not known."""
    try:
        with gevent.Timeout(PATIENCE, Refused(f"{machine.name} has not answered for {PATIENCE} s")):
            lines = machine.run(question())
        return installed(machine.name, machine.settings, lines)
    except Refused as refused:
        return str(refused)
    except (LookupError, ValueError) as error:
        return printable(f"{machine.name} gives an answer that is not understood ({type(error).__name__}: {error})")
    finally:
        machine.close()


# What a machine is asked, and its answers.


def question() -> str:
    """The one command, which root runs."""
    asked = [Question(Fact, f"{each}; echo {_END}") for each in _QUESTIONS.values()]
    return f"{shell_file('installed')}{Answers().question(asked)}"


def installed(name: str, settings: Settings, lines: Sequence[str]) -> Installed:
    """What the answers say. Raises Refused if one of them is not complete: what it lacks would not be missed."""
    numbered = Answers().answer(list(lines))
    answers = {key: numbered.get(number, []) for number, key in enumerate(_QUESTIONS)}
    if any(not found or found.pop() != _END for found in answers.values()):
        raise Refused(f"{name} has not answered in full: has it space on /run?")
    system = " ".join(answers["system"]).split()
    if len(system) != 3 or not answers["debian"]:
        raise Refused(f"{name} does not say which packages it has: is it a Debian machine?")
    distribution, release, architecture = system
    parts = [
        *debian_packages(f"{distribution}-{release}", settings, answers["debian"], answers["licences"]),
        *release_files(settings, answers["releases"]),
        *_deployed(answers["deployed"]),
    ]
    beside: dict[str, tuple[str, ...]] = {}
    for program, packages in python_packages(settings, answers["python"]).items():
        parts += packages
        for main in packages:
            if main.name in (program, f"matrix-{program}"):
                beside[main.ref] = tuple(each.ref for each in packages if each is not main)
    return Installed(
        machine=name,
        roles=tuple(role.name for role in settings.played),
        debian=f"{distribution} {release}",
        architecture=architecture,
        components=tuple(parts),
        beside=beside,
    )


def debian_packages(
    distribution: str, settings: Settings, packages: Iterable[str], licences: Iterable[str]
) -> Iterator[Component]:
    """Every package, also those that were there before: the machine is as safe as all of them."""
    named: dict[str, list[str]] = {}
    for line in licences:
        package, _, licence = line.partition("\t")
        # Some have a text where the name should be.
        if licence_names(licence):
            named.setdefault(package, []).append(" ".join(licence.split()))
    needed = list(needed_packages(settings))
    for line in packages:
        status, name, version, architecture, source, source_version = line.split("\t")
        if status != "installed":
            continue
        qualifiers = {"arch": architecture, "distro": distribution}
        # Debian's security tracker knows only the names of sources.
        if (source, source_version) != (name, version):
            qualifiers["upstream"] = source if source_version == version else f"{source}@{source_version}"
        purl = purl_of("deb", "debian", name, version=version, **qualifiers)
        yield Component(
            kind="debian",
            name=name,
            version=version,
            purl=purl,
            ref=purl,
            licences=tuple(named.get(name, ())),
            roles=frozenset(role or "all" for role, pattern in needed if pattern.fullmatch(name)),
        )


def python_packages(settings: Settings, lines: Iterable[str]) -> dict[str, list[Component]]:
    """What is in the virtualenv of each program."""
    locks = {each.program: each.locks for each in settings.virtualenvs} | {"uv": ("uv",)}
    locked = {
        program: {key: files for lock in of for key, files in locked_files(lock).items()}
        for program, of in locks.items()
    }
    roles = {each.program: role.name for role, view in settings.views for each in view.virtualenvs}
    texts: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("file "):
            texts.append((line.split("/")[2], []))
        else:
            texts[-1][1].append(line)
    found: dict[str, list[Component]] = {}
    for program, text in texts:
        if not _is_ours(program):
            continue
        about = message_from_string("\n".join(text))
        name, version = canonicalize_name(str(about["Name"])), str(about["Version"])
        main = name in (program, f"matrix-{program}")
        purl = purl_of("pypi", name, version=version)
        expression = " ".join(str(about["License-Expression"] or "").split())
        found.setdefault(program, []).append(
            Component(
                kind="python",
                name=name,
                version=version,
                purl=purl,
                ref=purl,
                licences=(expression,) if expression else _declared(about.get_all("Classifier", []), about["License"]),
                spdx=bool(expression),
                program=main,
                locked=locked.get(program, {}).get((name, version), ()),
                roles=frozenset({roles[program]} if main and program in roles else ()),
            )
        )
    return found


def _declared(classifiers: Iterable[str], text: str | None) -> tuple[str, ...]:
    """Licences as they were named before there was a field for an expression."""
    named = [str(each).split(" :: ") for each in classifiers]
    if found := [each[-1] for each in named if each[0] == "License" and each[-1] not in ("License", "OSI Approved")]:
        return tuple(dict.fromkeys(found))
    # It may be the text of a licence.
    lines = (text or "").strip().splitlines()
    return (lines[0],) if len(lines) == 1 and len(lines[0]) <= 100 and lines[0] != "UNKNOWN" else ()


def release_files(settings: Settings, lines: Iterable[str]) -> Iterator[Component]:
    releases = {each.name: (role.name, each) for role, view in settings.views for each in view.programs}
    for line in lines:
        name, directory, sha256 = [*line.split(), ""][:3]
        if not _is_ours(name):
            continue
        # A role that is no longer in the inventory has left it behind.
        role, release = releases.get(name, ("", None))
        version = directory.rpartition("-")[0]
        project = _project(release)
        yield Component(
            kind="release",
            name=name,
            version=version,
            purl=purl_of(*project, version=version) if project else purl_of("generic", name, version=version),
            # Machines of two architectures have two files.
            ref=f"{name}/{directory}",
            licences=(release.licence,) if release and release.licence else (),
            spdx=True,
            program=True,
            sha256=sha256,
            roles=frozenset({role} if role else ()),
        )


def _project(release: Release | None) -> tuple[str, ...] | None:
    """Where a project is, in the words of a package URL: at npm, or GitHub, whose addresses a mirror has as well."""
    address = urlsplit((release and release.url) or "").path
    path, found, _ = address.partition("/-/")
    if found:
        return "npm", path.rpartition("/")[2]
    path, found, _ = address.partition("/releases/download/")
    words = path.lower().split("/")
    return ("github", words[-2], words[-1]) if found and len(words) > 2 else None


def _deployed(lines: Iterable[str]) -> Iterator[Component]:
    """This project, as the last deploy that succeeded has noted it."""
    try:
        about = json.loads("\n".join(lines))
        version, commit = str(about["version"]), str(about["commit"])
    except (KeyError, TypeError, ValueError):
        return
    yield Component(
        kind="project",
        name=OURS,
        version=version,
        purl=purl_of("generic", OURS, version=version),
        ref=f"{OURS}/{version}{f'-{commit}' if commit else ''}",
        licences=(_our_licence(),),
        spdx=True,
        program=True,
        commit=commit,
    )


@cache
def _our_licence() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"])


def _is_ours(program: str) -> bool:
    """Whether a directory below /opt is of a role, and not of somebody else's."""
    return any(program in role.programs for role in ROLES.values())


def purl_of(kind: str, *path: str, version: str, **qualifiers: str) -> str:
    """A package URL: https://github.com/package-url/purl-spec"""
    words = "/".join(quote(each, safe="") for each in path)
    more = "&".join(f"{key}={quote(value, safe=':')}" for key, value in sorted(qualifiers.items()))
    return f"pkg:{kind}/{words}@{quote(version, safe=':')}{f'?{more}' if more else ''}"


def licence_names(text: str) -> tuple[str, ...]:
    """The single licences of an expression such as "GPL-2+ or Artistic, and Expat"; none if it is a text without a name."""
    names = re.split(r",?\s+(?:and|or|and/or)\s+|,\s*", text.strip(" ()"), flags=re.IGNORECASE)
    names = [" ".join(name.strip(" ()").split()) for name in names]
    named = all(re.fullmatch(r"[^\s*]\S*(?: with .+)?", name, re.IGNORECASE) and len(name) <= 80 for name in names)
    return tuple(names) if named else ()


# For programs.


def _merged(machines: Iterable[Installed]) -> list[Component]:
    """What is installed anywhere, each once: two virtualenvs may have the same package."""
    found: dict[str, Component] = {}
    for component in (each for machine in machines for each in machine.components):
        known = found.get(component.ref, component)
        found[component.ref] = replace(
            known,
            licences=known.licences or component.licences,
            locked=known.locked or component.locked,
            program=known.program or component.program,
            roles=known.roles | component.roles,
        )
    return sorted(found.values(), key=lambda each: (each.kind, each.name, each.version, each.ref))


def document(deployment: str, server_name: str, machines: Sequence[Installed]) -> dict[str, Any]:
    """The document. A machine depends on what is installed there, the deployment on its machines."""
    root = f"deployment/{deployment}"
    depends: dict[str, set[str]] = {root: {f"machine/{each.machine}" for each in machines}}
    for machine in machines:
        along = {ref for refs in machine.beside.values() for ref in refs}
        depends[f"machine/{machine.machine}"] = {
            _system_ref(machine),
            *(each.ref for each in machine.components if each.ref not in along or each.ref in machine.beside),
        }
        for program, refs in machine.beside.items():
            depends.setdefault(program, set()).update(refs)
    systems = {_system_ref(each): each.debian.split() for each in machines}
    components: list[dict[str, Any]] = [_machine(each) for each in machines]
    for ref, (name, release) in sorted(systems.items()):
        components.append({"type": "operating-system", "bom-ref": ref, "name": name, "version": release})
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": plain(datetime.now(UTC)),
            "lifecycles": [{"phase": "operations"}],
            "tools": {"components": [{"type": "application", "name": OURS, "version": this_version()["version"]}]},
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": deployment,
                "description": f"The Matrix homeserver {server_name}",
            },
        },
        "components": [*components, *map(_component, _merged(machines))],
        "dependencies": [{"ref": ref, "dependsOn": sorted(refs)} for ref, refs in sorted(depends.items())],
    }


def _system_ref(machine: Installed) -> str:
    return f"system/{machine.debian.replace(' ', '-')}"


def _machine(machine: Installed) -> dict[str, Any]:
    return {
        "type": "device",
        "bom-ref": f"machine/{machine.machine}",
        "name": machine.machine,
        "properties": _properties(architecture=[machine.architecture], role=machine.roles),
    }


def _component(component: Component) -> dict[str, Any]:
    about: dict[str, Any] = {
        "type": "application" if component.program else "library",
        "bom-ref": component.ref,
        "name": component.name,
        "version": component.version,
    }
    if component.sha256:
        about["hashes"] = _hashes([component.sha256])
    if component.spdx and component.licences:
        about["licenses"] = [{"expression": component.licences[0]}]
    elif component.licences:
        about["licenses"] = [{"license": {"name": each}} for each in component.licences]
    about["purl"] = component.purl
    if component.locked:
        # Which file of a release pip takes depends on the machine.
        about["externalReferences"] = [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{component.name}/{component.version}/",
                "comment": "The file that was installed has one of these hashes.",
                "hashes": _hashes(component.locked),
            }
        ]
    if properties := _properties(role=sorted(component.roles), commit=[component.commit]):
        about["properties"] = properties
    return about


def _hashes(sha256s: Iterable[str]) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": each} for each in sha256s]


def _properties(**values: Iterable[str]) -> list[dict[str, str]]:
    return [{"name": f"{OURS}:{name}", "value": each} for name, found in values.items() for each in found if each]


# For people.


def print_licences(components: Sequence[Component]) -> None:
    """How many components have each licence. One with several licences is counted for each of them."""
    under: dict[str, list[str]] = {}
    spelt: dict[str, Counter[str]] = {}
    for component in components:
        named = {name.lower(): name for licence in component.licences for name in licence_names(licence) or (licence,)}
        for key, name in named.items():
            under.setdefault(key, []).append(component.name)
            spelt.setdefault(key, Counter())[name] += 1
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("licence")
    table.add_column("components", justify="right")
    table.add_column("such as")
    for key, having in sorted(under.items(), key=lambda item: (-len(item[1]), item[0])):
        examples = ", ".join(dict.fromkeys(having[:EXAMPLES]))
        table.add_row(Text(spelt[key].most_common(1)[0][0]), str(len(having)), Text(examples))
    print_text(table)
    for kind, (what, where) in _ELSEWHERE.items():
        if unknown := dict.fromkeys(each.name for each in components if each.kind == kind and not each.licences):
            print_text(
                Text(f"\n{what} whose licence no program can read ({len(unknown)}; {where}): {', '.join(unknown)}")
            )
