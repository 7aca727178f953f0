"""Files from release pages, on a machine: single programs, and archives of many files.

The package `releases` describes releases and downloads them. A machine gets the files in /opt/<name>/<version>-<sha12>/, and
/opt/<name>/current switches to them once they are complete. A task obtains the file before anything is touched, and then
installs it:

    release = settings.view(SlidingSync).release
    file = releases.obtain(release, settings.machine.releases)
    releases.installed(name="Install the Sliding Sync proxy", file=file)
    units.running(name="Run the Sliding Sync proxy", unit="sliding-sync.service", reads=[release.executable, ...], ...)

A machine that already has the file needs neither a download nor a cache.
"""

import base64
import hashlib
import re
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass

from pyinfra.api.command import FunctionCommand, PyinfraCommand, StringCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from operations.look import ask, operation
from operations.programs import KEPT, Program, read_back
from operations.refusal import Refused
from operations.shell import Fact, quoted, script, shell_file
from releases import Release, ReleaseError, ReleaseFile, contents, record, store

_DIRECTORY = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_~-]*-[0-9a-f]{12}")


@dataclass(frozen=True)
class Installation:
    """What a machine has of a release.

    current: directory in use; sha256: of the file that the directory asked about was made from, empty if it is damaged;
    versions: directories of all installed versions, last used first; modes: of the programs in the directory asked about.
    back: the directory to which there is a way back, because the one in use has not come up yet.
    """

    current: str = ""
    sha256: str = ""
    modes: str = ""
    versions: tuple[str, ...] = ()
    back: str = ""


class Installed(Fact[Installation]):
    """What a machine has of a release, and in one of its directories. programs: paths of the executables there.

    archive: whether the release is an archive; then <directory>.sum has its sha256 and the checksum of its listing.
    """

    functions = "release"

    def question(self, home: str, directory: str, programs: Sequence[str], archive: bool) -> str:
        files = [f"{directory}/{program}" for program in programs]
        if archive:
            sha256 = (
                f"read -r sha256 sum rest <{quoted(f'{directory}.sum')} && "
                f"found=$(cd {quoted(directory)} && listing | sha256sum) && "
                '[ "${found%% *}" = "$sum" ] && echo "sha256=$sha256"; '
            )
        else:
            sha256 = f'echo "sha256=$(sha256sum <{quoted(*files)})"; '
        kept = quoted(f"{KEPT}/{home.rpartition('/')[2]}")
        return (
            f"if cd {quoted(home)} 2>/dev/null; then "
            r"find . -mindepth 1 -maxdepth 1 -name current -printf 'current=%l\n' -o -xtype d -printf 'version=%T@ %f\n'; "
            f"{sha256}stat -c mode=%a -- {quoted(*files)}; "
            f'back=; {read_back(kept)}; echo "back=$back"; '
            "fi 2>/dev/null; true"
        )

    @staticmethod
    def default() -> Installation:
        return Installation()

    def answer(self, lines: list[str]) -> Installation:
        values: dict[str, str] = {}
        modes: list[str] = []
        used: dict[str, float] = {}
        for line in lines:
            key, _, value = line.partition("=")
            if key == "version":
                when, _, directory = value.partition(" ")
                used[directory] = float(when)
            elif key == "mode":
                modes.append(value)
            else:
                values[key] = value
        return Installation(
            current=values.get("current", ""),
            sha256=values.get("sha256", "").partition(" ")[0],
            modes=" ".join(modes),
            back=values.get("back", ""),
            # Only our own directories count, so that nothing else is ever removed.
            versions=tuple(name for name in sorted(used, key=lambda name: -used[name]) if _DIRECTORY.fullmatch(name)),
        )


def obtain(release: Release, present: Collection[str]) -> ReleaseFile:
    """The file for a machine: checked, and on this computer unless the machine has it already.

    present: what the machine has below /opt, such as "sliding-sync/v0.99.19-0123456789ab" (`MachineState.releases`).
    A task calls it before it installs, so that a wrong setting or an unreachable server stops the run early.
    """
    try:
        wanted = store.wanted_sha256(release)
        if wanted is not None and f"{release.name}/{release.directory(wanted)}" in present:
            return ReleaseFile(release, wanted)
        return store.resolve(release)
    except ReleaseError as error:
        raise Refused(str(error)) from error


@operation()
def installed(file: ReleaseFile, program: Program | None = None) -> Generator[PyinfraCommand, None, None]:
    """The files are in a directory of their own, complete, and `current` links to it.

    The directory gets its name only after the machine has checked the upload, so neither an interrupted upload nor a full
    disk leaves wrong files behind. The previous version is kept, older ones are removed. A first download is recorded.

    program: what runs it, and how to go back if it does not come up; None: nothing runs it.
    """
    release = file.release
    now = ask(
        Installed,
        home=release.home,
        directory=release.directory(file.sha256),
        programs=release.programs,
        archive=release.archive is not None,
    )
    complete, in_use = now.sha256 == file.sha256, now.current == file.directory
    executable = now.modes.split() == ["755"] * len(release.programs)

    others = [version for version in now.versions if version != file.directory]
    before = others[:1] if in_use or now.current not in others else [now.current]
    surplus = [version for version in others if version not in (*before, now.back)]

    if not complete:
        yield from _send(file)
    if not (complete and in_use and executable):
        programs = [f"{file.directory}/{program}" for program in release.programs]
        yield script(
            *([program.keep(file.directory)] if program and now.current not in ("", file.directory) else []),
            f"cd {quoted(release.home)}",
            # The time when the previous version was last in use decides which one is kept.
            *([f"touch -c {quoted(now.current)}"] if before == [now.current] else []),
            f"touch {quoted(file.directory)}",
            # Even if the modes are right: it sets the change time, so that a unit which reads the program is restarted after a
            # switch back to an older version, too.
            *([f"chmod 755 {quoted(*programs)}"] if programs else []),
            f"ln -sfn {quoted(file.directory)} .current.new",
            "mv -fT .current.new current",
        )
    if surplus:
        yield script(f"cd {quoted(release.home)}", f"rm -rf -- {quoted(*surplus, *(f'{old}.sum' for old in surplus))}")
    if file.new:
        yield FunctionCommand(_record, (file,), {})


def _send(file: ReleaseFile) -> Iterator[StringCommand]:
    """Upload the files through the standard input of one command, and make the directory of them."""
    release, path = file.release, file.path
    if path is None:
        # The machine has it, but damaged.
        try:
            file = store.resolve(release)
        except ReleaseError as error:
            raise Refused(str(error)) from error
        path = file.path
    assert path is not None
    values = {"home": release.home, "title": str(release), "directory": file.directory}
    shell = " ".join(f"{name}={quoted(value)}" for name, value in values.items()) + f"\n{shell_file('release')}"
    yield script(shell, f"make_room {path.stat().st_size + file.size}")
    packed = contents.pack(release, path)
    sha256 = hashlib.sha256(packed).hexdigest()
    arrived = script(shell, f"receive {quoted(sha256, file.sha256 if release.archive else '', release.name)}")
    yield StringCommand(*arrived.bits, _stdin=_Encoded(packed))


class _Encoded(list[str]):
    """Bytes as lines of base64, which pyinfra can send; encoded while they are sent, to save memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__([""])  # an empty list would not be sent at all
        self._content = content

    def __iter__(self) -> Iterator[str]:
        size = 3 << 18
        for start in range(0, len(self._content), size):
            yield base64.b64encode(self._content[start : start + size]).decode()


def _record(state: State, host: Host, file: ReleaseFile) -> bool:
    try:
        if record.add(file):
            host.log(f"{file.release.record} now has the sha256 of {file.release}: commit it")
    except ReleaseError as error:
        host.log(str(error))
        return False
    return True
