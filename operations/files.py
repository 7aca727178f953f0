"""Files and directories of a machine: one command to look at many of them, and each is replaced as a whole.

Files are uploaded through the standard input of one command, in order. Each is written into a temporary file that only root can
read, gets its owner and mode, is checked, and is then moved into place. So a reader sees the old file or the new one, a secret is
at no time readable by others, and an upload works the same as root and through sudo.
"""

import base64
import difflib
import hashlib
import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from pyinfra.api import StringCommand
from pyinfra.api.output import format_text
from pyinfra.context import host, state

from operations.look import ask, operation
from operations.refusal import refuse
from operations.shell import Fact, quoted, script, shell_file
from operations.templating import MASK, TEMPLATES, render
from vault import Secret


@dataclass(frozen=True)
class Directory:
    """A directory; its content is left alone. A link to a directory will do: an administrator may have moved it to another disk.

    mode: octal digits as a string, such as "750".
    """

    path: str
    mode: str
    user: str = "root"
    group: str = "root"


@dataclass(frozen=True)
class File:
    """A file; its subclasses define its content.

    mode: octal digits as a string, such as "640".
    check: shell command run on the new file before it is put in place, with {} for its temporary path; if it fails,
        nothing is changed.
    """

    path: str
    _: KW_ONLY
    mode: str
    user: str = "root"
    group: str = "root"
    check: str | None = None

    def content(self) -> tuple[bytes, bytes]:
        """The content, and the content with secrets masked."""
        raise NotImplementedError


@dataclass(frozen=True)
class Copy(File):
    """A file copied as it is from templates/<source>."""

    source: str = field(kw_only=False)

    def content(self) -> tuple[bytes, bytes]:
        content = (TEMPLATES / self.source).read_bytes()
        return content, content


@dataclass(frozen=True)
class Template(File):
    """A file rendered from templates/<source>.j2 with the given values."""

    source: str = field(kw_only=False)
    values: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def content(self) -> tuple[bytes, bytes]:
        real, masked = render(f"{self.source}.j2", self.values)
        return real.encode(), masked.encode()


@dataclass(frozen=True)
class Text(File):
    """A file with the given text, which is never shown if it is a Secret."""

    text: str | Secret = field(kw_only=False)

    def content(self) -> tuple[bytes, bytes]:
        if isinstance(self.text, Secret):
            return self.text.reveal().encode(), MASK.encode()
        return self.text.encode(), self.text.encode()


@dataclass(frozen=True)
class Absent:
    """A file of an earlier run that is not needed any more: it is not there."""

    path: str


Entry = Directory | File | Absent


def secret_file(path: str, secret: Secret | None, *, mode: str, user: str, group: str) -> Text | Absent:
    """The file with a secret; None: it is not needed, and is not there."""
    return Text(path, secret, mode=mode, user=user, group=group) if secret else Absent(path)


@dataclass(frozen=True)
class State:
    """What is at a path. kind: file, directory, link or other; mode in octal digits."""

    kind: str
    mode: str = ""
    user: str = ""
    group: str = ""
    sha256: str = ""


class Paths(Fact[dict[str, State]]):
    """What is at each of the given paths; missing ones are left out."""

    about_paths = True

    def question(self, paths: Sequence[str]) -> str:
        asked = (r"stat --printf 'S\t%n\t%f\t%a\t%U\t%G\n' --", "sha256sum --")
        return "\n".join([f"set -- {quoted(*paths)}", *(f'{each} "$@" 2>/dev/null' for each in asked), "true"])

    @staticmethod
    def default() -> dict[str, State]:
        return {}

    def answer(self, lines: list[str]) -> dict[str, State]:
        kinds = {0o100000: "file", 0o040000: "directory", 0o120000: "link"}
        stats: dict[str, tuple[str, str, str, str]] = {}
        sums: dict[str, str] = {}
        for line in lines:
            tag, _, rest = line.partition("\t")
            if tag == "S":
                path, raw, mode, user, group = rest.split("\t")
                stats[path] = (kinds.get(int(raw, 16) & 0o170000, "other"), mode, user, group)
            else:
                sha256, _, path = line.partition("  ")
                sums[path] = sha256
        return {path: State(*values, sha256=sums.get(path, "")) for path, values in stats.items()}


class Contents(Fact[list[str]]):
    """The lines of a text file, for --diff; none if it does not exist.

    secret: (start, replacement) for each line that will have a secret. Such lines are masked on the machine already, because
    -vvv prints what a fact reads.
    """

    def question(self, path: str, secret: Sequence[tuple[str, str]] = ()) -> str:
        blank = "[[:space:]]*"
        edits = []
        for start, replacement in secret:
            edits.append(
                f"s/^{blank}#?{blank}{blank.join(map(_literal, start.split()))}.*/{_replacement(replacement)}/;t"
            )
        for start, _ in secret:
            # The rest of the text before the secret may differ as well: the first word identifies the line.
            [word] = re.findall(r"^\s*([\w.-]+|\S+)", start)
            edits.append(f"s/^({blank}#?{blank}{_literal(word)})([^[:alnum:]_.-].*)?$/\\1 {_replacement(MASK)}/;t")
        program = " ".join(f"-e {shlex.quote(edit)}" for edit in edits) or "-e ''"
        return f"sed -E {program} -- {shlex.quote(path)} 2>/dev/null; true"

    @staticmethod
    def default() -> list[str]:
        return []

    def answer(self, lines: list[str]) -> list[str]:
        return lines


def _literal(text: str) -> str:
    """The text as an extended regular expression of sed."""
    return re.sub(r"([][\\.^$*+?(){}|/])", r"\\\1", text)


def _replacement(text: str) -> str:
    return re.sub(r"([\\&/])", r"\\\1", text)


@operation()
def present(entries: Sequence[Entry]) -> Generator[StringCommand, None, None]:
    """The given files and directories are as described, made in the given order; those that are not needed are gone.

    Only what differs is touched. Refuses if something of another kind is at a path: it is never removed.
    """
    found: dict[str, State] = ask(Paths, paths=[entry.path for entry in entries])
    for entry in entries:
        if problem := _problem(entry, found.get(entry.path)):
            yield from refuse(problem)
            return
    steps = [(entry.path, step) for entry in entries if (step := _step(entry, found.get(entry.path)))]
    if steps:
        yield _put_in_place(steps)


def replaced(entry: File) -> StringCommand:
    """The command that puts a file in place, whatever is there."""
    return _put_in_place([(entry.path, _put(entry, entry.content()[0]))])


def _put_in_place(steps: Sequence[tuple[str, str]]) -> StringCommand:
    """One command for all steps, each a path and shell. Nothing is done before all has arrived: a connection may end before."""
    program = ["{", "set -eu", shell_file("files"), *(step for _, step in steps), "}"]
    # The paths are for people who look at the commands.
    return script(f"exec sh -s -- {quoted(*(path for path, _ in steps))}", stdin="\n".join(program) + "\n")


def _step(entry: Entry, now: State | None) -> str | None:
    """What is to be done about an entry, as shell; None: nothing."""
    match entry:
        case Directory():
            return _directory(entry, now)
        case File():
            return _file(entry, now)
        case Absent() if now is not None:
            return f"rm -f {quoted(entry.path)}"
        case _:
            return None


def _problem(entry: Entry, now: State | None) -> str | None:
    """Why this entry cannot be made, if it cannot."""
    if isinstance(entry, Absent):
        return None
    kind = "directory" if isinstance(entry, Directory) else "file"
    # A link will do for a directory.
    if now is not None and now.kind not in (kind, "link" if kind == "directory" else kind):
        return f"{entry.path} should be a {kind} but is a {now.kind}; move it away and run again"
    return None


def _directory(entry: Directory, now: State | None) -> str | None:
    if now and (now.kind == "link" or (now.mode, now.user, now.group) == (entry.mode, entry.user, entry.group)):
        return None
    return f"install -d -m {entry.mode} -o {quoted(entry.user)} -g {quoted(entry.group)} {quoted(entry.path)}"


def _file(entry: File, now: State | None) -> str | None:
    content, masked = entry.content()
    if content != masked and int(entry.mode[-1]) & 4:
        raise ValueError(f"{entry.path} contains a secret and must not have mode {entry.mode}, readable by everybody")

    same_content = now is not None and now.sha256 == hashlib.sha256(content).hexdigest()
    same_access = now is not None and (now.mode, now.user, now.group) == (entry.mode, entry.user, entry.group)
    if same_content and same_access:
        return None
    if not same_content and state.config.DIFF:
        _show_difference(entry, content, masked)
    return _put(entry, content)


def _put(entry: File, content: bytes) -> str:
    check = (entry.check or "").replace("{}", '"$new"')
    put = quoted(entry.path, f"{entry.user}:{entry.group}", entry.mode, check)
    return f"put {put} <<'end'\n{base64.encodebytes(content).decode()}end"


def _show_difference(entry: File, content: bytes, masked: bytes) -> None:
    """Print the difference for --diff, with every secret masked, in the new file and in the old one."""
    try:
        new_lines = masked.decode().splitlines()
    except UnicodeDecodeError:
        host.log(f"{entry.path}: not text, no difference shown")
        return
    # A line with a secret is recognised by the text before the secret, so that the old secret is masked as well.
    secret = [(line.split(MASK)[0], line) for line in new_lines if MASK in line] if content != masked else []
    if not all(start.strip() for start, _ in secret):
        host.log(f"{entry.path}: contains nothing but a secret, which differs")
        return
    old_lines: list[str] = ask(Contents, path=entry.path, secret=secret)
    host.log(f"{'Will change' if old_lines else 'Will create'} {format_text(entry.path, bold=True)}")
    if old_lines == new_lines:
        host.log("only a secret in it differs")
    for line in difflib.unified_diff(old_lines, new_lines, "on the machine", "wanted", lineterm="", n=2):
        colour = {"+": "green", "-": "red"}.get(line[:1])
        host.log(format_text(line, colour) if colour else line)
