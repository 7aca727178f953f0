"""Archives from release pages: what is refused, what is installed, and upstream's checksums."""

import gzip
import io
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import whole_file
from operations.refusal import Refused
from releases import Archive, Release, ReleaseError, contents, record, store
from releases.download import Timeouts
from tests.standin.release_server import ReleaseServer
from tests.unit.installing import HERE, THERE, Machine, installed_files, program, sum_of

URL = "releases/app-v1.tar.gz"


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


def plain_tar(entries: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Written without tarfile, which would refuse wrong headers."""
    written = b""
    for member, content in entries:
        written += member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    return written + bytes(1024)


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    return gzip.compress(plain_tar(entries), 1, mtime=0)


def good(version: str = "v1") -> bytes:
    return tar(
        entry("./", type=tarfile.DIRTYPE),
        entry("./app", f"#!/bin/sh\necho {version}\n".encode(), mode=0o644),
        entry("./share/", type=tarfile.DIRTYPE, mode=0o700),
        entry("./share/page.html", b"<p>" + version.encode(), mode=0o666),
        entry("./share/tool", b"#!/bin/sh\n", mode=0o6777),
    )


@pytest.fixture
def archived(release: Release, server: ReleaseServer) -> Release:
    """A release that is an archive, with a valid one on the page."""
    server.files[URL] = good()
    return replace(
        release, name="app", version="v1", url=f"{server.url}/{URL}", archive=Archive(("app",), ("share/page.html",))
    )


@pytest.fixture
def refused(archived: Release, server: ReleaseServer) -> Callable[..., str]:
    """A function that puts an archive on the page, which must be refused, and returns the message."""

    def refused(content: bytes, **changed: Any) -> str:
        server.files[URL] = content
        with pytest.raises(ReleaseError) as caught:
            store.resolve(replace(archived, **changed))
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{archived.url} ")
        assert message.endswith("set sliding_sync_binary = '/path/to/file' instead, or try again")
        assert list(whole_file.cache_directory().glob("*")) == []
        return message

    return refused


# --- what is refused ---


APP = entry("app", b"#!/bin/sh\n")
PAGE = entry("share/page.html", b"<p>")
LINK: dict[str, Any] = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}


def test_a_page_with_a_script_that_is_not_known_is_refused(
    archived: Release, refused: Callable[..., str], tmp_path: Path
) -> None:
    archive = Archive(("app",), ("index.html",), scripts=("sha256-Q/AXd3qmS6Qn7Mz/w8j0s+b3PXaM6t3gNKjFiV7qTXU=",))
    for page in (b"<script>known()</script><SCRIPT>other()</SCRIPT >", b'<script type="module">known() </script>'):
        line = refused(tar(APP, entry("index.html", page)), archive=archive)
        assert "contains a page with a script that is not known, sha256-" in line
    assert "of more than 1 MiB" in refused(tar(APP, entry("index.html", b" " * (1 << 21))), archive=archive)
    known = tmp_path / "known.tar.gz"
    known.write_bytes(tar(APP, entry("index.html", b'<script defer src="x.js"></script><script>known()</script>')))
    assert contents.check(replace(archived, archive=archive), known) > 0


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        pytest.param([entry("/etc/cron.d/x")], "contains '/etc/cron.d/x', which would leave its", id="absolute"),
        pytest.param([entry("share/../../x")], "contains 'share/../../x', which would leave its", id="parent"),
        pytest.param([entry("..", type=tarfile.DIRTYPE)], "contains '..', which would leave its", id="parent itself"),
        pytest.param([entry("share/x", **LINK)], "contains a link, 'share/x' to '/etc/passwd'", id="symlink out"),
        pytest.param(
            [entry("x", type=tarfile.SYMTYPE, linkname="app")], "contains a link, 'x' to 'app'", id="symlink in"
        ),
        pytest.param(
            [entry("x", type=tarfile.LNKTYPE, linkname="../../etc/shadow")], "contains a link", id="hard link out"
        ),
        pytest.param([entry("x", type=tarfile.LNKTYPE, linkname="app")], "contains a link", id="hard link in"),
        pytest.param([entry("x", **LINK), entry("x/y", b"z")], "contains a link", id="through a link"),
        pytest.param([entry("x", type=tarfile.CHRTYPE, devmajor=1)], "neither a file nor a directory", id="device"),
        pytest.param([entry("x", type=tarfile.BLKTYPE)], "neither a file nor a directory", id="block device"),
        pytest.param([entry("x", type=tarfile.FIFOTYPE)], "neither a file nor a directory", id="fifo"),
        pytest.param([entry("x", type=b"Z")], "unpack", id="unknown kind"),
        pytest.param([entry("a\nb")], r"whose name is not text, 'a\nb'", id="line break in a name"),
        pytest.param([entry("a\x1b[2J")], "whose name is not text", id="terminal codes in a name"),
        pytest.param([entry("a\udcff")], "whose name is not text", id="not UTF-8"),
        pytest.param([entry("app", b"#!/bin/sh\necho evil\n")], "contains 'app' twice", id="twice"),
        pytest.param([entry("./app", b"x")], "contains 'app' twice", id="twice by another name"),
        pytest.param([entry("share", b"x")], "contains 'share' twice", id="file over directory"),
        pytest.param([entry("app", type=tarfile.DIRTYPE)], "contains 'app' twice", id="directory over file"),
        pytest.param([entry("app/x", b"x")], "contains 'app/x' below the file 'app'", id="below a file"),
        pytest.param([entry("x", size=1 << 40)], "unpacks to more than 1024 MiB", id="claims a terabyte"),
        pytest.param([entry("x", size=contents.SIZE + 1)], "unpacks to more than 1024 MiB", id="a byte too much"),
        pytest.param([entry("x", size=-512)], "is damaged", id="negative size"),
        pytest.param([entry("x", type=tarfile.XHDTYPE, size=1 << 30)], "description of more than 1 MiB", id="pax bomb"),
        pytest.param([entry("x", type=tarfile.GNUTYPE_LONGNAME, size=1 << 30)], "description of more", id="name bomb"),
        pytest.param([(tarfile.TarInfo("x"), b"\xff" * 512)], "is damaged", id="garbage instead of an entry"),
        pytest.param([entry("x", size=4096)], "is a damaged or incomplete archive", id="content breaks off"),
    ],
)
def test_an_unsafe_archive_is_refused(
    more: list[tuple[tarfile.TarInfo, bytes]], complaint: str, refused: Callable[..., str]
) -> None:
    assert complaint in refused(tar(APP, PAGE, *more))


def test_a_sparse_file_is_refused(refused: Callable[..., str]) -> None:
    """tarfile takes it for a regular file, but it claims more content than it has."""
    member, _ = entry("x", size=0)
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 20)}
    content = member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    assert "neither a file nor a directory" in refused(gzip.compress(plain_tar([APP, PAGE])[:-1024] + content))


def test_a_bomb_is_not_unpacked_to_its_end(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SIZE", 1 << 20)
    many = [entry(f"x{number}", bytes(300_000)) for number in range(4)]
    assert "unpacks to more than 1 MiB: not unpacked" in refused(tar(APP, PAGE, *many))
    # Data after the end of the archive.
    assert "unpacks to more than 1 MiB: not unpacked" in refused(gzip.compress(plain_tar([APP, PAGE]) + bytes(2 << 20)))


def test_too_many_entries(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MEMBERS", 5)
    many = [entry(f"x{number}") for number in range(4)]
    assert "has more than 5 entries: not unpacked" in refused(tar(APP, PAGE, *many))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param(good()[: len(good()) // 2], "is a damaged or incomplete archive", id="half"),
        pytest.param(good()[:-4], "is a damaged or incomplete archive", id="a few bytes short"),
        pytest.param(good()[:-8] + bytes(8), "is a damaged or incomplete archive", id="other sum"),
        pytest.param(gzip.compress(b"text"), "is a damaged or incomplete archive", id="gzip of something else"),
        pytest.param(b"<!doctype html>", "is a web page, no tar.gz archive", id="page"),
        pytest.param(plain_tar([APP, PAGE]), "is something else, no tar.gz archive", id="not compressed"),
        pytest.param(b"PK\x03\x04", "is a zip archive, no tar.gz archive", id="zip"),
        pytest.param(b"", "is an empty file, no tar.gz archive", id="empty"),
        pytest.param(program(), "is something else, no tar.gz archive", id="program"),
        pytest.param(tar(), "there is no app in it", id="nothing in it"),
        pytest.param(tar(APP), "there is no share/page.html in it", id="incomplete"),
        pytest.param(tar(entry("app", type=tarfile.DIRTYPE), PAGE), "there is no app in it", id="directory"),
        pytest.param(
            tar(entry("app", program(THERE)), PAGE), f"contains app, which is an {THERE} program", id="other cpu"
        ),
        pytest.param(tar(entry("app", b"<p>"), PAGE), "contains app, which is a web page, neither", id="no program"),
    ],
)
def test_another_file_than_the_expected_archive_is_refused(
    content: bytes, complaint: str, refused: Callable[..., str]
) -> None:
    assert complaint in refused(content)


def test_damaged_archives_never_crash(archived: Release, tmp_path: Path) -> None:
    """Each is accepted or refused, whatever tarfile makes of the damage."""
    chance = random.Random(1)  # noqa: S311
    valid, file = gzip.decompress(good()), tmp_path / "damaged"
    for _ in range(300):
        damaged = bytearray(valid)
        for _ in range(chance.choice((1, 3, 40))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(gzip.compress(damaged, 1))
        try:
            contents.check(archived, file)
        except contents.Unusable as problem:
            assert "\n" not in str(problem)


def test_leading_folders_are_stripped(archived: Release, server: ReleaseServer, machine: Machine) -> None:
    inner = replace(archived, archive=Archive(("app",), ("share/page.html",), strip=1))
    around = [
        entry("app-v1/", type=tarfile.DIRTYPE),
        entry("app-v1/app", b"#!/bin/sh\n"),
        entry("app-v1/share/page.html"),
    ]
    server.files[URL] = tar(*around)
    assert machine.run(machine.obtain(inner)) == "changed"
    assert Path(inner.executable).is_file()
    assert Path(inner.path("share/page.html")).is_file()
    for stray in (entry("stray"), entry("other/stray")):
        server.files[URL] = tar(*around, stray)
        with pytest.raises(ReleaseError, match=r"stray' is not in the folder of the others"):
            store.resolve(replace(inner, version="v2", url=f"{server.url}/{URL}/"))


def test_a_given_archive(archived: Release, server: ReleaseServer, tmp_path: Path) -> None:
    file = tmp_path / "app.tar.gz"
    file.write_bytes(good())
    assert store.resolve(replace(archived, file=file)).sha256 == sum_of(good())
    file.write_bytes(tar(APP, PAGE, entry("../x")))
    with pytest.raises(ReleaseError) as caught:
        store.resolve(replace(archived, file=file))
    assert str(caught.value).startswith(f"sliding_sync_binary = '{file}' contains '../x'")
    assert str(caught.value).endswith("set sliding_sync_binary to another archive")
    assert server.requests == []


# --- on the machine ---


def tree(release: Release) -> dict[str, str]:
    """The files of the version in use, with their modes."""
    current = (Path(release.home) / "current").resolve()
    return {str(path.relative_to(current)): f"{path.stat().st_mode & 0o7777:o}" for path in current.rglob("*")}


def test_an_archive_is_installed_and_a_second_run_does_nothing(
    archived: Release, server: ReleaseServer, machine: Machine
) -> None:
    file = machine.obtain(archived)
    assert machine.dry_run(file)
    assert not Path(archived.root).exists()
    assert machine.run(file) == "changed"
    assert tree(archived) == {"app": "755", "share": "755", "share/page.html": "644", "share/tool": "755"}
    assert subprocess.run([archived.executable], capture_output=True, text=True).stdout == "v1\n"
    assert installed_files(archived) == ["current", file.directory, f"{file.directory}.sum"]
    assert record.read(archived.record)["app", "v1", HERE] == sum_of(good())

    server.fault = "dead"
    again = machine.obtain(archived)
    assert again.path is None
    assert machine.run(again) == "unchanged"


def _write(path: Path) -> None:
    path.write_text("<p>xx")  # as long as before


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda home, page: _write(page), id="written to"),
        pytest.param(lambda home, page: os.truncate(page, 1), id="cut short"),
        pytest.param(lambda home, page: page.unlink(), id="removed"),
        pytest.param(lambda home, page: page.chmod(0o600), id="other mode"),
        pytest.param(lambda home, page: os.chown(page, 1234, 0), id="other owner"),
        pytest.param(lambda home, page: (page.parent / "more").touch(), id="one more"),
        pytest.param(lambda home, page: page.parent.chmod(0o700), id="directory's mode"),
        pytest.param(lambda home, page: next(home.glob("*.sum")).unlink(), id="no list"),
        pytest.param(lambda home, page: next(home.glob("*.sum")).write_text("x"), id="half a list"),
    ],
)
def test_a_damaged_directory_is_replaced(
    damage: Callable[[Path, Path], None], archived: Release, machine: Machine
) -> None:
    machine.run(machine.obtain(archived))
    before, page = tree(archived), Path(archived.path("share/page.html"))
    damage(Path(archived.home), page)
    file = machine.obtain(archived)
    assert machine.run(file) == "changed"
    assert tree(archived) == before
    assert page.read_text() == "<p>v1"
    assert installed_files(archived) == ["current", file.directory, f"{file.directory}.sum"]
    assert machine.run(machine.obtain(archived)) == "unchanged"


def test_a_program_of_an_archive_that_lost_its_mode(archived: Release, machine: Machine) -> None:
    machine.run(machine.obtain(archived))
    Path(archived.executable).chmod(0o644)
    assert machine.run(machine.obtain(archived)) == "changed"
    assert machine.run(machine.obtain(archived)) == "unchanged"


def test_switching_to_another_version_and_back(archived: Release, server: ReleaseServer, machine: Machine) -> None:
    releases = {}
    for version in ("v1", "v2", "v3"):
        server.files[URL.replace("v1", version)] = good(version)
        url = str(archived.url).replace("v1", version)
        releases[version] = replace(archived, version=version, url=url)
    page, directories = Path(archived.path("share/page.html")), {}
    for version in ("v1", "v2"):
        file = machine.obtain(releases[version])
        directories[version] = file.directory
        assert machine.run(file) == "changed"
        assert page.read_text() == f"<p>{version}"

    before = Path(archived.home, directories["v1"], "app").stat().st_ctime_ns
    back = machine.obtain(releases["v1"])
    assert back.path is None  # it is still there, and complete
    assert machine.run(back) == "changed"
    assert page.read_text() == "<p>v1"
    assert Path(archived.executable).stat().st_ctime_ns > before  # a unit that watches the program restarts
    assert machine.run(machine.obtain(releases["v1"])) == "unchanged"

    third = machine.obtain(releases["v3"])
    assert machine.run(third) == "changed"
    both = (directories["v1"], third.directory)
    assert installed_files(archived) == sorted(["current", *both, *(f"{each}.sum" for each in both)])


def test_the_version_in_use_stays_if_the_next_one_is_refused(
    archived: Release, server: ReleaseServer, machine: Machine
) -> None:
    machine.run(machine.obtain(archived))
    server.files["releases/app-v2.tar.gz"] = tar(APP, PAGE, entry("../x"))
    with pytest.raises(Refused, match=r"which would leave its directory"):
        machine.obtain(replace(archived, version="v2", url=f"{server.url}/releases/app-v2.tar.gz"))
    assert Path(archived.path("share/page.html")).read_text() == "<p>v1"


def test_a_large_file_is_sent_unchanged(archived: Release, server: ReleaseServer, machine: Machine) -> None:
    large = random.Random(1).randbytes(2_500_000)  # noqa: S311
    server.files[URL] = tar(APP, PAGE, entry("large", large))
    assert machine.run(machine.obtain(archived)) == "changed"
    assert Path(archived.path("large")).read_bytes() == large


# --- upstream's checksums ---


@pytest.fixture
def listed(archived: Release, server: ReleaseServer) -> Release:
    """The same release, with a list of checksums by upstream."""
    server.files["releases/checksums.txt"] = f"{'0' * 64}  other.tar.gz\n{sum_of(good())}  app-v1.tar.gz\n".encode()
    return replace(archived, checksums=f"{server.url}/releases/checksums.txt")


def test_the_first_download_must_match_upstreams_sum(listed: Release, server: ReleaseServer) -> None:
    file = store.resolve(listed)
    assert file.new
    record.add(file)
    requests = len(server.requests)
    store.resolve(listed)
    assert len(server.requests) == requests  # from now on the record is used


@pytest.mark.parametrize("form", ["{sum} *app-v1.tar.gz", "{sum}  ./app-v1.tar.gz\r", "{SUM}  app-v1.tar.gz"])
def test_forms_of_a_list(form: str, listed: Release, server: ReleaseServer) -> None:
    sha256 = sum_of(good())
    server.files["releases/checksums.txt"] = form.format(sum=sha256, SUM=sha256.upper()).encode()
    assert store.resolve(listed).sha256 == sha256


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            f"{'0' * 64}  app-v1.tar.gz\n",
            f"has the sha256 {sum_of(good())}, but https://[^ ]*checksums.txt says 0{{64}}",
        ),
        (
            f"{sum_of(good())}  app-v10.tar.gz\n",
            "checksums.txt has no sha256 of app-v1.tar.gz: set sliding_sync_binary",
        ),
        (f"{'0' * 64}  app-v1.tar.gz\n{sum_of(good())}  app-v1.tar.gz\n", "has no sha256 of app-v1.tar.gz"),
        (f"{sum_of(good())[:40]}  app-v1.tar.gz\n", "has no sha256 of app-v1.tar.gz"),
        ("<!doctype html>", "has no sha256 of app-v1.tar.gz"),
        ("\xff" * (1 << 20), "cannot be checked: .*checksums.txt: it is larger than 1 MiB"),
        (None, "cannot be checked: .*checksums.txt: the server answered 404 Not Found: .* or set sliding_sync_sha256$"),
    ],
)
def test_a_list_without_the_files_checksum(
    content: str | None, complaint: str, listed: Release, server: ReleaseServer
) -> None:
    server.files.pop("releases/checksums.txt")
    if content is not None:
        server.files["releases/checksums.txt"] = content.encode()
    with pytest.raises(ReleaseError, match=complaint):
        store.resolve(listed)
    assert list(whole_file.cache_directory().glob("*")) == []


def test_a_list_that_cannot_be_downloaded(listed: Release) -> None:
    with pytest.raises(ReleaseError, match=r"cannot be checked: .*connection refused"):
        store.resolve(replace(listed, checksums="https://127.0.0.1:9/checksums.txt"), timeouts=Timeouts(connect=2))
    with pytest.raises(ReleaseError, match=r"http://127.0.0.1/x: only https:// is allowed"):
        store.resolve(replace(listed, checksums="http://127.0.0.1/x"))


def test_the_setting_and_the_record_take_precedence_over_upstreams_sum(listed: Release, server: ReleaseServer) -> None:
    server.files["releases/checksums.txt"] = f"{'0' * 64}  app-v1.tar.gz\n".encode()
    assert store.resolve(replace(listed, sha256=sum_of(good()))).sha256 == sum_of(good())
    assert not any("checksums" in path for path in server.requests)


def test_what_is_packed_is_what_was_checked(archived: Release, tmp_path: Path) -> None:
    file = tmp_path / "app.tar.gz"
    file.write_bytes(good())
    with tarfile.open(fileobj=io.BytesIO(contents.pack(archived, file))) as packed:
        entries = {member.name: (member.uid, member.mtime, f"{member.mode:o}") for member in packed}
    assert entries == {
        "app": (0, 0, "755"),
        "share": (0, 0, "755"),
        "share/page.html": (0, 0, "644"),
        "share/tool": (0, 0, "755"),
    }
