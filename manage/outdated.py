"""python manage.py NAME outdated"""

import re
import ssl
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import gevent
from packaging.version import InvalidVersion, Version
from rich.table import Table
from rich.text import Text

from compat import Refused
from manage.machines import Deployment, Machine
from manage.output import as_json, plain, print_json, print_text
from operations.virtualenvs import locked
from releases import Release
from roles import PACKAGES
from settings import Settings
from settings.deployment import view_of

if TYPE_CHECKING:
    import httpx

PYPI = "https://pypi.org/pypi"
# Seconds to wait for an answer; how many are waited for at once. Seconds for a machine.
TIMEOUT, AT_ONCE, PATIENCE = 20, 8, 60
# Package lists that are older do not know what was published meanwhile.
STALE = timedelta(days=3)
# What would be upgraded, by the package lists that the machine has. Nothing is changed, and no lock is taken.
_APT = "stat -c 'lists %Y' /var/lib/apt/lists; apt-get -s -q -o Debug::NoLocking=true dist-upgrade"
_INST = re.compile(r"Inst (?P<name>\S+) \[(?P<old>[^\]]+)\] \((?P<new>\S+) (?P<origin>.*)\)")


@dataclass(frozen=True)
class Vulnerability:
    """fixed_in: the releases that do not have it any more, if there are any."""

    id: str
    fixed_in: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """Something that is installed. kind: "python", "release" or "debian". where: a lock file, or a machine.

    newest: the newest that there is, if it is another. direct: somebody chose it, it did not come with something else.
    """

    kind: str
    name: str
    where: str
    version: str
    newest: str | None
    vulnerabilities: tuple[Vulnerability, ...] = ()
    direct: bool = True


class Unreachable(Exception):
    """Why a source gave no answer."""


@click.command()
@click.option("--pypi", metavar="URL", default=PYPI, show_default=True, help="Where PyPI's JSON API is.")
@as_json
@click.pass_obj
def outdated(deployment: Deployment, pypi: str, as_json: bool) -> None:
    """Show what has a newer release, and known vulnerabilities.

    PyPI is asked about the locked packages, the release pages about the programs, and the machines about Debian's packages, by
    the lists that their last `apt-get update` has fetched. Nothing is changed. The exit status is 1 if a vulnerability is known,
    and also if nobody knows: PyPI or a machine has not answered, or its lists are old. Release pages know only newer releases.
    """
    # Its import takes a tenth of a second, and the other commands do not need it.
    import httpx

    machines = deployment.every_machine()
    items: list[Item] = []
    silent: list[str] = []
    with (
        httpx.Client(
            # As for downloads of releases: the authorities of the system's, also those that were added to them.
            verify=ssl.create_default_context(),
            timeout=TIMEOUT,
            headers={"User-Agent": "matrix-metal"},
        ) as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        jobs = [gevent.spawn(_of_machine, machine) for machine in machines]
        pages = _of_release_pages(client, pool, machines)
        for found, problems in (
            _of_pypi(client, pool, pypi.rstrip("/"), machines),
            pages,
            *(job.get() for job in jobs),
        ):
            items += found
            silent += problems
    # Otherwise nobody would learn that cron's job has asked in vain for months.
    complete = not set(silent) - set(pages[1])
    vulnerable = [item for item in items if item.vulnerabilities]
    if as_json:
        shown = [item for item in items if item.newest or item.vulnerabilities]
        print_json(
            {
                "vulnerable": bool(vulnerable),
                "complete": complete,
                "items": plain(shown),
                "asked": len(items),
                "unreachable": silent,
            }
        )
    else:
        _print(items, silent, complete)
    if vulnerable or not complete:
        sys.exit(1)


Answer = tuple[list[Item], list[str]]


# PyPI.


def _of_pypi(client: "httpx.Client", pool: ThreadPoolExecutor, url: str, machines: Sequence[Machine]) -> Answer:
    """The packages of the virtualenvs of these machines, and those that deploy them."""
    locks = {each.lock: each.distribution for machine in machines for each in machine.settings.virtualenvs}
    wanted: dict[tuple[str, str], list[str]] = {}
    for lock in dict.fromkeys(
        lock for machine in machines for each in machine.settings.virtualenvs for lock in each.locks
    ):
        for name, version in locked(lock).items():
            wanted.setdefault((name, version), []).append(f"requirements/{lock}.txt")
    for name, version in locked("").items():
        wanted.setdefault((name, version), []).append("requirements.lock")
    jobs = {pair: pool.submit(_pypi_about, client, url, *pair) for pair in wanted}
    items, failed = [], {}
    for (name, version), job in jobs.items():
        try:
            newest, vulnerabilities = job.result()
        except Unreachable as error:
            failed[name] = str(error)
            continue
        direct = name in locks.values()
        items.append(Item("python", name, ", ".join(wanted[name, version]), version, newest, vulnerabilities, direct))
    return items, list(_summed_up("PyPI", failed))


def _pypi_about(
    client: "httpx.Client", url: str, name: str, version: str
) -> tuple[str | None, tuple[Vulnerability, ...]]:
    """The newest release, if it is newer, and what is known about the one that is locked."""
    about = _json(client, f"{url}/{quote(name)}/json")
    newest = str(about["info"]["version"])
    if newest != version:
        about = _json(client, f"{url}/{quote(name)}/{quote(version)}/json")
    known = tuple(
        Vulnerability(each["id"], tuple(each.get("fixed_in") or ()))
        for each in about.get("vulnerabilities") or ()
        if not each.get("withdrawn")
    )
    return (newest if is_newer(newest, version) else None), known


def _json(client: "httpx.Client", url: str) -> Any:
    answer = _get(client, url)
    if answer.status_code != 200:
        raise Unreachable(f"{url} answers {answer.status_code}")
    try:
        return answer.json()
    except ValueError:
        raise Unreachable(f"{url} is not JSON") from None


def _get(client: "httpx.Client", url: str, follow: bool = True) -> "httpx.Response":
    import httpx

    try:
        return client.get(url, follow_redirects=follow)
    except httpx.HTTPError as error:
        raise Unreachable(f"{url}: {str(error) or type(error).__name__}") from None


def _summed_up(source: str, failed: Mapping[str, str]) -> Iterator[str]:
    """One line for what a source has not answered. failed: what was asked -> why there is no answer."""
    if failed:
        names = ", ".join(list(failed)[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
        yield f"{source} was not asked about {names}: {next(iter(failed.values()))}"


def is_newer(one: str, other: str) -> bool:
    """Whether a version is newer than another, as far as they are comparable: else, whether it is another."""
    try:
        return Version(one.removeprefix("v")) > Version(other.removeprefix("v"))
    except InvalidVersion:
        return one != other


# Release pages.


def _of_release_pages(client: "httpx.Client", pool: ThreadPoolExecutor, machines: Sequence[Machine]) -> Answer:
    releases = {
        release.name: release for machine in machines for _, view in machine.settings.views for release in view.programs
    }
    jobs = {name: pool.submit(_newest_release, client, release) for name, release in releases.items()}
    items, silent = [], []
    for name, job in jobs.items():
        version = releases[name].version
        try:
            newest = job.result()
        except Unreachable as error:
            silent.append(f"the release page of {name} was not asked: {error}")
            continue
        items.append(Item("release", name, "release page", version, newest if is_newer(newest, version) else None))
    return items, silent


def _newest_release(client: "httpx.Client", release: Release) -> str:
    """The release that the page of a project calls its latest: its address leads there. Or what npm calls so."""
    package, found, _ = (release.url or "").partition("/-/")
    if found:
        latest = _json(client, f"{package}/latest")
        return str(latest.get("version", release.version) if isinstance(latest, dict) else release.version)
    project, found, _ = (release.url or "").partition("/releases/download/")
    if not found:
        raise Unreachable(f"{release.url} is no page with releases")
    answer = _get(client, f"{project}/releases/latest", follow=False)
    _, found, tag = answer.headers.get("location", "").partition("/releases/tag/")
    if not found:
        raise Unreachable(f"{project}/releases/latest answers {answer.status_code}, and names no release")
    return str(tag)


# Debian's packages.


def _of_machine(machine: Machine) -> Answer:
    try:
        with gevent.Timeout(PATIENCE, Refused(f"{machine.name} has not answered for {PATIENCE} s")):
            lines = machine.run(_APT)
    except Refused as refused:
        return [], [str(refused)]
    finally:
        machine.close()
    return debian_packages(machine.name, [each for _, each in needed_packages(machine.settings)], lines)


def needed_packages(settings: Settings) -> Iterator[tuple[str, re.Pattern[str]]]:
    """The names of packages that a machine needs, each with the role that asks for it; "" if it is not for a single role."""
    # The version of PostgreSQL is part of its packages' names, and not known before the machine has said what it has.
    of_roles = [(role.name, each) for role in settings.played for each in role.packages]
    of_roles += [(role.name, each) for role in settings.played for each in view_of(role.name).packages(settings)]
    known = {settings.written(name) for _, name in of_roles}
    for role, name in (*of_roles, *(("", each) for each in (*settings.packages, *PACKAGES) if each not in known)):
        yield role, re.compile(re.escape(name).replace(r"\{version\}", r"\d+"))


def debian_packages(machine: str, needed: Collection[re.Pattern[str]], lines: Sequence[str]) -> Answer:
    """What apt would upgrade: security updates, and others of packages that the roles need."""
    items, silent = [], []
    for line in lines:
        if line.startswith("lists "):
            fetched = datetime.fromtimestamp(int(line.split()[1]), UTC)
            if datetime.now(UTC) - fetched > STALE:
                silent.append(f"{machine}: its package lists are from {fetched:%Y-%m-%d}: `apt-get update` there")
        elif found := _INST.match(line):
            security = "-security" in found["origin"].lower()
            direct = any(pattern.fullmatch(found["name"]) for pattern in needed)
            if security or direct:
                known = (Vulnerability("security update", (found["new"],)),) if security else ()
                items.append(Item("debian", found["name"], machine, found["old"], found["new"], known, direct))
    return items, silent


# For people.


def _print(items: Sequence[Item], silent: Sequence[str], complete: bool) -> None:
    shown = [item for item in items if item.vulnerabilities or (item.newest and item.direct)]
    others = sum(1 for item in items if item.newest and item not in shown)
    vulnerable = [item for item in items if item.vulnerabilities]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("what", "installed", "newest", "known vulnerabilities", "where"):
        table.add_column(heading)
    for item in sorted(shown, key=lambda item: not item.vulnerabilities):
        table.add_row(
            item.name,
            item.version,
            item.newest or "-",
            Text(_described(item) or "-", "bold red" if item.vulnerabilities else ""),
            item.where,
        )
    if shown:
        print_text(table, "")
    if others:
        have, them = ("has a newer release", "it") if others == 1 else ("have newer releases", "them")
        print_text(Text(f"Of what comes with them, {others} {have}: `make lock UPGRADE=1` takes {them} in.", "dim"))
    for line in silent:
        print_text(Text(line, "yellow"))
    if vulnerable:
        print_text(
            Text(f"{len(vulnerable)} with known vulnerabilities. ", "bold red").append(
                "Debian's packages: `apt-get upgrade` on the machine. Others: a new version of matrix-metal, or "
                "`make lock UPGRADE=1`; then deploy.",
                "default",
            )
        )
    elif complete:
        print_text(Text("No vulnerability is known.", "green"))
    if not complete:
        print_text(Text("Not everything was asked about vulnerabilities, see above: exit status 1.", "yellow"))


def _described(item: Item) -> str:
    """Its vulnerabilities, with the releases that have them no more if those are others than the newest."""
    texts = []
    for each in item.vulnerabilities:
        fixed = " or ".join(version for version in each.fixed_in if version != item.newest)
        texts.append(f"{each.id} (fixed in {fixed})" if fixed else each.id)
    return ", ".join(texts)
