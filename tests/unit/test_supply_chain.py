"""Everything that is installed is pinned by hash, or signed by Debian (docs/security.md)."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import whole_file
from operations.machine import MachineState
from operations.virtualenvs import REQUIREMENTS
from releases import Release, ReleaseError, record, store
from roles import ROLES
from settings.deployment import View
from tests.conftest import from_page
from tests.standin.archives import cinny_archive, element_archive
from tests.standin.release_server import ReleaseServer
from tests.unit.test_settings import settings
from vault import WithoutSecrets

ROOT = Path(__file__).parent.parent.parent
LOCKS = [ROOT / "requirements.lock", *sorted(REQUIREMENTS.glob("*.txt"))]


def project() -> Iterator[tuple[Path, str]]:
    """Each file that is run or deployed, with its text; lines that go on are one. Tests install on throw-away hosts only."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        if not name.startswith("tests/") and not name.endswith((".md", ".in", ".txt", ".lock")):
            yield Path(name), (ROOT / name).read_text().replace("\\\n", " ")


def found(pattern: str) -> list[str]:
    """The lines of the project in which it is, with their files."""
    return [
        f"{path}: {line.strip()}"
        for path, text in project()
        for line in text.splitlines()
        if re.search(pattern, line, re.IGNORECASE) and not line.lstrip().startswith("#")
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_of_a_lock_has_one_version_and_hashes(lock: Path) -> None:
    lines = [line for line in lock.read_text().replace("\\\n", " ").splitlines() if not re.match(r"\s*(#|$)", line)]
    pinned = re.compile(r"[\w.-]+(\[[\w,-]+\])?==[^\s;*]+( ; [^\\]*?)?(\s+--hash=sha256:[0-9a-f]{64})+")
    assert lines and [line for line in lines if not pinned.fullmatch(line)] == []


def test_every_installation_of_python_packages_wants_hashes() -> None:
    installing = found(r"\bpip\d? +install\b|\bpip\"? install\b")
    # The computer that deploys, uv, and what uv installs; the same for the bench.
    assert {line.partition(":")[0] for line in installing} == {
        "Makefile",
        "bench/floor.sh",
        "operations/sh/virtualenv.sh",
    }
    assert [line for line in installing if "--require-hashes" not in line] == []
    assert found(r"\b(pipx|easy_install|uvx|npm|npx|cargo|go) +(install|run|ci)\b|\buv (sync|tool|add)\b") == []


# What apt is told, besides what to do: none of it is about signatures, or about where packages come from.
APT_OPTIONS = {
    "Acquire::Retries",
    "Acquire::http::Timeout",
    "APT::AutoRemove::SuggestsImportant",
    "APT::Update::Error-Mode",
    "DPkg::Lock::Timeout",
    "Debug::NoLocking",
    "Dir::State::extended_states",
    "Dpkg::Options::=--force-confold",
}


def test_debians_signatures_are_never_ignored() -> None:
    options = {option for line in found(r"\bapt(-get|-mark)?\b") for option in re.findall(r" -o *([\w:-]+=\S*)", line)}
    assert len(options) > 5
    assert [each for each in options if each not in APT_OPTIONS and each.partition("=")[0] not in APT_OPTIONS] == []
    assert found(r"allow-?(unauthenticated|insecure|weak|downgrade-?to)|trusted *[=:] *(yes|true|1)|force-yes") == []
    assert found(r"check-?gpg|verify-(peer|host)|check-valid-until|\bdpkg +(-i|--install)\b") == []
    # No other sources, and no other keys. A message may name the file, and so may what `status` advises.
    others = found(r"/etc/apt/(sources|trusted|keyrings|auth)|/usr/share/keyrings|add-apt-repository|apt-key|Signed-By")
    assert [line for line in others if ": echo " not in line and not line.startswith("manage/judgement.py: ")] == []


def test_nothing_is_run_that_was_just_downloaded() -> None:
    shell = r"(sudo +)?(env +)?(ba|da|z)?sh\b|python3?\b|perl\b|tar\b"
    assert found(rf"\b(curl|wget)\b[^|;&]*\| *({shell})") == []
    assert found(r"\b(sh|bash|eval|source|\.) .*(\$\(|<\(|`) *(curl|wget)\b") == []
    assert found(r"\b(wget|git +clone|docker|podman|snap|flatpak)\b +[a-z-]") == []
    # curl is for questions, and writes nothing but what is thrown away.
    assert [line for line in found(r"\bcurl\b.* (-o|--output|-O|--remote-name)\b") if "/dev/null" not in line] == []


def every_release(directory: Path, page: ReleaseServer) -> list[Release]:
    """What the roles have from release pages."""
    machine = MachineState(release="13", architecture="amd64")
    chosen = settings(
        directory, {role: ["one"] for role in ROLES if role != "backup"}, machine, cinny=True, **from_page(page)
    )
    chosen.vault = WithoutSecrets()
    views: list[View] = [view for _, view in chosen.views]
    return [release for view in views for release in view.programs]


def test_release_files_are_checked_against_what_is_recorded(
    tmp_path: Path, server: ReleaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    releases = every_release(tmp_path, server)
    assert {release.name for release in releases} == {
        program
        for role in ROLES.values()
        for program in role.programs
        if program not in ("matrix-synapse", "sydent", "uv")
    }
    recorded = "a" * 64
    for release in releases:
        assert release.url and release.url.startswith("https://")
        server.files[release.url.removeprefix(f"{server.url}/")] = b"another file"
        lines = f'["{release.name}"."{release.version}"]\n"{release.arch}" = "{recorded}"\n'
        release.record.parent.mkdir(parents=True, exist_ok=True)
        release.record.write_text(lines)
        assert record.read(release.record) == {record.key(release): recorded}
        with pytest.raises(ReleaseError, match=f"recorded at the first download {recorded}: not installed"):
            store.resolve(release)
        # The first download, where the project publishes checksums.
        release.record.unlink()
        if release.checksums:
            name = release.url.rpartition("/")[2]
            server.files[release.checksums.removeprefix(f"{server.url}/")] = f"{recorded}  {name}\n".encode()
            with pytest.raises(ReleaseError, match=f"says {recorded}: not installed"):
                store.resolve(release)
        if release.signature:
            server.files[release.url.removeprefix(f"{server.url}/")] = (
                cinny_archive(tmp_path) if release.name == "cinny" else element_archive(tmp_path, release.version)
            )
            with pytest.raises(ReleaseError, match=r"cannot be checked: .*: not installed"):
                store.resolve(release)
            # So that nothing of it is taken for checked later.
            for left in whole_file.cache_directory().glob(f"{release.name}-*"):
                left.unlink()
    assert list(whole_file.cache_directory().glob("*")) == []
    assert [release.name for release in releases if release.checksums] == ["livekit"]
    assert [release.name for release in releases if release.signature] == ["element-web", "cinny"]


def test_every_release_says_its_licence(tmp_path: Path, server: ReleaseServer) -> None:
    assert [release.name for release in every_release(tmp_path, server) if not release.licence] == []
