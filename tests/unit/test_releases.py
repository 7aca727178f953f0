"""Release files: downloaded over real HTTPS, installed by real pyinfra operations below a temporary root."""

import base64
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyinfra.connectors.util
import pytest

import whole_file
from operations import releases
from releases import Release, ReleaseError, ReleaseFile, contents, download, record, store
from releases.download import Timeouts
from settings.sliding_sync import VERSION
from tests.standin.proxy import Proxy
from tests.standin.release_server import ReleaseServer
from tests.unit.installing import HERE, PATH, THERE, Machine, installed_files, program, sum_of

STANDIN = Path(__file__).parent.parent / "standin" / "syncv3"


def refused(release: Release, timeouts: Timeouts | None = None) -> str:
    """The message with which it is refused: one line, and nothing of it is left in the cache."""
    with pytest.raises(ReleaseError) as caught:
        store.resolve(release, timeouts=timeouts)
    message = str(caught.value)
    assert "\n" not in message
    assert list(whole_file.cache_directory().glob("*")) == []
    return message


# --- files given by the administrator ---


def test_a_given_file_is_used_without_a_download_or_a_record(
    release: Release, server: ReleaseServer, tmp_path: Path
) -> None:
    file = tmp_path / "syncv3"
    file.write_bytes(program())
    binary = store.resolve(replace(release, file=file))
    assert (binary.path, binary.sha256, binary.new) == (file, sum_of(program()), False)
    assert store.wanted_sha256(replace(release, file=file)) == sum_of(program())
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param(program(THERE), f"an {THERE} program, the machine is {HERE}", id="other architecture"),
        pytest.param(program("riscv64"), f"a riscv64 program, the machine is {HERE}", id="exotic architecture"),
        pytest.param(program()[:4] + b"\x01" + program()[5:], "for 32 bits", id="x32"),
        pytest.param(program()[:30], "its header is incomplete", id="half a header"),
        pytest.param(program()[: len(program()) // 2], "cut short", id="half a program"),
        pytest.param(program()[:16] + b"\x04\0" + program()[18:], "cannot be executed", id="core dump"),
        pytest.param(b"<!doctype html><title>Not Found</title>", "a web page, neither a Linux program", id="page"),
        pytest.param(b"\x1f\x8b\x08\0\0\0\0\0", "a gzip archive", id="archive"),
        pytest.param(b"", "an empty file", id="empty"),
    ],
)
def test_a_file_that_the_machine_could_not_run_is_refused(
    content: bytes, complaint: str, release: Release, server: ReleaseServer, tmp_path: Path
) -> None:
    file = tmp_path / "syncv3"
    file.write_bytes(content)
    message = refused(replace(release, file=file))
    assert complaint in message
    assert f"sliding_sync_binary = '{file}'" in message

    server.files[f"{PATH}/syncv3_linux_{HERE}"] = content
    message = refused(release)
    assert complaint in message
    assert server.url in message
    assert "sliding_sync_binary" in message


def test_a_script_is_a_program_for_every_machine(release: Release) -> None:
    for arch in (HERE, THERE):
        assert store.resolve(replace(release, file=STANDIN, arch=arch)).path == STANDIN


def test_a_given_file_must_be_a_file(release: Release, tmp_path: Path) -> None:
    missing = refused(replace(release, file=tmp_path / "nothing"))
    assert "does not exist" in missing
    assert f"sliding_sync_binary = '{tmp_path}/nothing'" in missing
    assert "is not a regular file" in refused(replace(release, file=tmp_path))


def test_a_given_file_must_match_the_setting_but_not_the_record(release: Release, tmp_path: Path) -> None:
    file = tmp_path / "syncv3"
    file.write_bytes(program())
    record.add(store.resolve(release))
    file.write_bytes(program(text=b"patched"))
    assert store.resolve(replace(release, file=file)).sha256 == sum_of(program(text=b"patched"))

    with pytest.raises(ReleaseError) as caught:
        store.resolve(replace(release, file=file, sha256="0" * 64))
    message = str(caught.value)
    assert "sliding_sync_sha256" in message
    assert "0" * 64 in message
    assert sum_of(program(text=b"patched")) in message


def test_a_misspelt_sha256_names_the_setting(release: Release) -> None:
    assert f"sliding_sync_sha256 for {HERE} is 'abc': 64 hexadecimal digits" in refused(replace(release, sha256="abc"))


# --- the download ---


def test_it_is_downloaded_once_and_each_architecture_gets_its_own(release: Release, server: ReleaseServer) -> None:
    first = store.resolve(release)
    assert first.path is not None
    assert first.path.read_bytes() == program(HERE)
    requests = len(server.requests)
    assert store.resolve(release) == first
    assert len(server.requests) == requests
    other = store.resolve(replace(release, arch=THERE, url=str(release.url).replace(HERE, THERE)))
    assert other.sha256 == sum_of(program(THERE))


def test_the_proxy_of_this_computer_is_used(
    release: Release, server: ReleaseServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Proxy("127.0.0.1") as proxy, (tmp_path / "file").open("wb") as file:
        for name, value in {"https_proxy": proxy.url, "no_proxy": "", "NO_PROXY": ""}.items():
            monkeypatch.setenv(name, value)
        download.download(str(release.url), file, Timeouts())
        assert proxy.asked == {"127.0.0.1"}


def test_machines_prepared_in_parallel_share_one_download(release: Release, server: ReleaseServer) -> None:
    threads = [threading.Thread(target=store.resolve, args=(release,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 2  # the asset, and where it redirects to


def test_a_damaged_cache_is_downloaded_again(release: Release, server: ReleaseServer) -> None:
    first = store.resolve(release)
    assert first.path is not None
    first.path.write_bytes(program(text=b"bit rot"))
    requests = len(server.requests)
    again = store.resolve(release)
    assert again.path is not None
    assert again.path.read_bytes() == program()
    assert len(server.requests) > requests


def test_a_mirrors_file_is_not_taken_for_upstreams(release: Release, server: ReleaseServer) -> None:
    server.files["mirror/syncv3"] = program(text=b"theirs")
    mirror = store.resolve(replace(release, url=f"{server.url}/mirror/syncv3"))
    assert store.resolve(release).sha256 == sum_of(program()) != mirror.sha256


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("truncated", f"the connection ended after {len(program()) // 2} of {len(program())} bytes"),
        ("unsized", "does not say how long the file is"),
        ("not-found", "answered 404 Not Found"),
        ("unavailable", "answered 503 Service Unavailable"),
        ("dead", "connection refused"),
        ("slow", "nothing came for 0.3 s"),
        ("insecure", "redirects to http://127.0.0.1"),
    ],
)
def test_a_failing_server_is_one_clear_line_and_the_next_try_succeeds(
    fault: Any, complaint: str, release: Release, server: ReleaseServer
) -> None:
    server.fault = fault
    message = refused(release, timeouts=Timeouts(connect=5, read=0.3))
    assert complaint in message
    assert f"{server.url}/{PATH}/syncv3_linux_{HERE}" in message
    assert message.endswith("set sliding_sync_binary = '/path/to/file' instead, or try again")
    server.fault = None
    assert store.resolve(release).sha256 == sum_of(program())


def test_a_server_that_does_not_answer_at_all(release: Release) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/x"
        message = refused(replace(release, url=url), timeouts=Timeouts(connect=0.2))
    assert f"{url}: no answer within 0.2 s: set sliding_sync_binary" in message


def test_a_server_that_speaks_no_tls(release: Release) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"https://127.0.0.1:{plain.getsockname()[1]}/x"
        assert "no TLS connection" in refused(replace(release, url=url))


def test_the_proxy_of_the_environment_is_used(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def answer() -> None:
            connection, _ = proxy.accept()
            with connection:
                requests.append(connection.recv(1000))
                connection.sendall(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        message = refused(replace(release, url="https://releases.invalid/syncv3"))
    assert requests[0].startswith(b"CONNECT releases.invalid:443 ")
    assert "https://releases.invalid/syncv3: 407 Who are you" in message


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:9", "gopher://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_named(address: str, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", address)
    assert "the proxy that the environment names cannot be used" in refused(release)


def test_chunked_transfer_without_a_length(release: Release, server: ReleaseServer) -> None:
    server.fault = "chunked"
    assert store.resolve(release).sha256 == sum_of(program())
    next(whole_file.cache_directory().glob("*")).unlink()
    server.fault = "broken-chunks"
    message = refused(release)
    assert f"the connection ended after {len(program()) // 2} bytes" in message


def test_a_file_larger_than_any_release_is_not_downloaded(
    release: Release, server: ReleaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.download, "__defaults__", (1000,))
    for fault in (None, "chunked"):
        server.fault = fault
        assert "it is larger than 0 MiB" in refused(release)


def test_an_untrusted_certificate(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    message = refused(release)
    assert "certificate is not trusted" in message
    assert "sliding_sync_binary" in message


def test_an_unknown_name(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    message = refused(replace(release, url="https://releases.invalid/syncv3"))
    assert "https://releases.invalid/syncv3: the name cannot be resolved" in message


def test_only_https_is_downloaded(release: Release) -> None:
    for url in ("http://127.0.0.1/x", "file:///bin/true", "https:/x"):
        message = refused(replace(release, url=url))
        assert f"{url}: only https:// is allowed" in message
        assert "sliding_sync_binary" in message


def test_an_interrupted_download_leaves_nothing(
    release: Release, server: ReleaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(contents, "check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.resolve(release)
    assert list(whole_file.cache_directory().glob("*")) == []


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_server(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ReleaseError, match=r"cannot be kept in .*/file/matrix-metal: Not a directory: set XDG_CACHE_HOME"
    ):
        store.resolve(release)

    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):  # noqa: PTH123
        download.download(str(release.url), full, Timeouts())


# --- its checksum ---


def test_the_first_download_is_recorded_and_every_later_one_must_match(release: Release, server: ReleaseServer) -> None:
    binary = store.resolve(release)
    assert binary.new
    assert not release.record.exists()  # as after a dry run
    assert store.wanted_sha256(release) is None

    assert record.add(binary)
    assert store.wanted_sha256(release) == binary.sha256
    assert not store.resolve(release).new
    assert store.wanted_sha256(replace(release, arch=THERE)) is None

    assert binary.path is not None
    binary.path.unlink()
    server.fault = "wrong"
    message = refused(release)
    assert binary.sha256 in message
    assert sum_of(b"#!/bin/sh\necho this is not what was released\n") in message
    assert str(release.record) in message
    assert "not installed" in message


def test_the_setting_takes_precedence_over_the_record(release: Release, server: ReleaseServer) -> None:
    record.add(store.resolve(release))
    server.files[f"{PATH}/syncv3_linux_{HERE}"] = program(text=b"rebuilt")
    wanted = replace(release, sha256=sum_of(program(text=b"rebuilt")).upper())
    binary = store.resolve(wanted)
    assert binary.sha256 == sum_of(program(text=b"rebuilt"))
    assert not binary.new


def test_a_wrong_setting_shows_both_sums(release: Release) -> None:
    message = refused(replace(release, sha256="0" * 64))
    assert f"sliding_sync_sha256 says {'0' * 64}" in message
    assert sum_of(program()) in message


def test_the_record_keeps_everything_sorted(release: Release) -> None:
    for arch in ("arm64", "amd64"):
        for name in ("sliding-sync", "another"):
            record.add(ReleaseFile(replace(release, name=name, arch=arch), sum_of(name.encode()), new=True))
    lines = [line for line in release.record.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == [
        f'["another"."{VERSION}"]',
        f'"amd64" = "{sum_of(b"another")}"',
        f'"arm64" = "{sum_of(b"another")}"',
        f'["sliding-sync"."{VERSION}"]',
        f'"amd64" = "{sum_of(b"sliding-sync")}"',
        f'"arm64" = "{sum_of(b"sliding-sync")}"',
    ]
    assert [path.name for path in release.record.parent.iterdir()] == ["prod.lock"]
    assert release.record.stat().st_mode & 0o777 == 0o644


def test_parallel_runs_lose_no_record(release: Release) -> None:
    names = [f"program-{number}" for number in range(12)]
    threads = [
        threading.Thread(target=record.add, args=(ReleaseFile(replace(release, name=name), "0" * 64, new=True),))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name for name, _, _ in record.read(release.record)} == set(names)


def test_a_record_is_never_overwritten_with_another_sum(release: Release) -> None:
    record.add(ReleaseFile(release, "1" * 64, new=True))
    with pytest.raises(ReleaseError, match=r"1{64}.*2{64}"):
        record.add(ReleaseFile(release, "2" * 64, new=True))
    assert store.wanted_sha256(release) == "1" * 64


@pytest.mark.parametrize(
    "content", ["<<<<<<< HEAD\n", "sliding-sync = 1\n", '[sliding-sync."v0.99.19"]\namd64 = "x"\n']
)
def test_a_damaged_record_is_not_taken_for_an_empty_one(content: str, release: Release) -> None:
    release.record.parent.mkdir()
    release.record.write_text(content)
    assert "restore it from version control" in refused(release)
    assert release.record.read_text() == content


def test_a_version_cannot_lead_out_of_its_directory(release: Release) -> None:
    for version in ("../v1", "", ".hidden", "v1/x", "-v1", "v 1"):
        with pytest.raises(ReleaseError):
            replace(release, version=version)


# --- on the machine ---


@pytest.fixture
def make(release: Release, tmp_path: Path) -> Callable[[str], ReleaseFile]:
    """A function that makes a version of the program; it prints its version."""

    def make(version: str, text: str = "") -> ReleaseFile:
        file = tmp_path / f"given-{version}"
        file.write_text(f"#!/bin/sh\necho {version}{text}\n")
        return store.resolve(replace(release, version=version, file=file))

    return make


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def output_of(release: Release) -> str:
    return subprocess.run([release.executable], capture_output=True, text=True, check=True).stdout.strip()


def test_it_is_installed_from_the_release_page_and_a_second_run_does_nothing(
    machine: Machine, release: Release, server: ReleaseServer
) -> None:
    binary = machine.obtain(release)
    assert machine.dry_run(binary)
    assert not Path(release.root).exists()
    assert not release.record.exists()

    assert machine.run(binary) == "changed"
    subprocess.run([release.executable], check=True)
    assert installed_files(release) == ["current", f"{VERSION}-{binary.sha256[:12]}"]
    assert (Path(release.root) / "sliding-sync" / "current").readlink() == Path(binary.directory)
    assert Path(release.executable).stat().st_mode & 0o7777 == 0o755
    assert record.read(release.record) == {("sliding-sync", VERSION, HERE): binary.sha256}

    # Neither the page nor the cache is needed now.
    assert binary.path is not None
    binary.path.unlink()
    server.fault = "dead"
    again = machine.obtain(release)
    assert again.path is None
    assert not machine.dry_run(again)
    assert machine.run(again) == "unchanged"


def test_a_damaged_program_is_repaired(machine: Machine, make: Callable[[str], ReleaseFile], release: Release) -> None:
    binary = make("v1")
    machine.run(binary)
    Path(release.executable).write_text("#!/bin/sh\necho damaged\n")
    # By its name it is installed; that it is damaged is noticed on the machine.
    assert machine.run(machine.obtain(binary.release)) == "changed"
    assert output_of(release) == "v1"
    Path(release.executable).unlink()
    assert machine.run(binary) == "changed"
    assert output_of(release) == "v1"
    assert machine.run(binary) == "unchanged"


def test_a_changed_mode_or_link_is_repaired_without_an_upload(
    machine: Machine, make: Callable[[str], ReleaseFile], release: Release
) -> None:
    binary = make("v1")
    machine.run(binary)
    there = replace(binary, path=None)
    Path(release.executable).chmod(0o600)
    assert machine.run(there) == "changed"
    assert output_of(release) == "v1"
    current = Path(release.root) / "sliding-sync" / "current"
    current.unlink()
    assert machine.run(there) == "changed"
    assert output_of(release) == "v1"
    assert machine.run(there) == "unchanged"


def test_the_previous_version_is_kept_and_older_ones_are_removed(
    machine: Machine, make: Callable[[str], ReleaseFile], release: Release
) -> None:
    home = Path(release.root) / "sliding-sync"
    versions = {name: make(name) for name in ("v1", "v2", "v3")}
    for name in ("v1", "v2"):
        assert machine.run(versions[name]) == "changed"
    (home / "notes").mkdir()
    (home / "v1").mkdir()

    def present() -> set[str]:
        return {name for name, binary in versions.items() if (home / binary.directory).exists()}

    assert output_of(release) == "v2"
    assert present() == {"v1", "v2"}

    # Back to the previous version, which is still there and is not uploaded again; then to the newest.
    before = Path(release.root, "sliding-sync", versions["v1"].directory).stat().st_ctime_ns
    assert machine.run(replace(versions["v1"], path=None)) == "changed"
    assert output_of(release) == "v1"
    assert Path(release.executable).stat().st_ctime_ns > before  # a unit that watches the program restarts
    assert machine.run(versions["v3"]) == "changed"
    assert output_of(release) == "v3"
    assert present() == {"v1", "v3"}
    assert (home / "notes").exists()
    assert (home / "v1").exists()
    assert machine.run(versions["v3"]) == "unchanged"


def test_old_versions_left_by_an_interrupted_run_are_removed(
    machine: Machine, make: Callable[[str], ReleaseFile], release: Release
) -> None:
    binary = make("v9")
    machine.run(binary)
    home = Path(release.root) / "sliding-sync"
    for age, name in enumerate(("v8-" + "0" * 12, "v7-" + "0" * 12)):
        (home / name).mkdir()
        moment = time.time() - 1000 * (age + 1)
        os.utime(home / name, (moment, moment))
    assert machine.run(binary) == "changed"
    assert installed_files(release) == ["current", "v8-" + "0" * 12, binary.directory]
    assert machine.run(binary) == "unchanged"


@pytest.mark.parametrize("outcome", ["connection lost", "silently cut short", "other content"])
def test_an_upload_that_goes_wrong_leaves_the_old_version_running(
    outcome: str,
    machine: Machine,
    make: Callable[[str], ReleaseFile],
    release: Release,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = make("v1"), make("v2")
    machine.run(old)

    def broken(stdin: Any, pipe: Any) -> None:
        content = base64.b64encode(stdin._content)
        sent = {"connection lost": content[:8], "silently cut short": content[:-8], "other content": b"QUFB"}
        pipe.write(sent[outcome])
        pipe.close()  # a machine notices nothing else of a lost connection
        if outcome == "connection lost":
            raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(pyinfra.connectors.util, "write_stdin", broken)
        assert machine.run(new) == "failed"
    assert output_of(release) == "v1"
    assert not (Path(release.root) / "sliding-sync" / new.directory).exists()
    # What the lost connection left on the machine may still have to begin, and to end.
    wait_until(lambda: installed_files(release) == ["current", old.directory])

    assert machine.run(new) == "changed"
    assert output_of(release) == "v2"
    wait_until(lambda: installed_files(release) == sorted(["current", old.directory, new.directory]))


def test_a_full_disk_is_reported_before_anything_is_uploaded(
    machine: Machine,
    make: Callable[[str], ReleaseFile],
    release: Release,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Path(release.root)
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], check=True)
    try:
        (disk / "filler").write_bytes(bytes(4096))
        assert machine.run(make("v1")) == "failed"
        assert "sliding-sync v1: " in (output := capfd.readouterr().err + caplog.text)
        assert "has no space for" in output
        assert installed_files(release) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_failed_installation_records_nothing(
    machine: Machine, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = machine.obtain(release)
    monkeypatch.setattr(releases._Encoded, "__iter__", lambda self: iter(["QUFB"]))
    assert machine.run(binary) == "failed"
    assert not release.record.exists()


def test_paths_with_spaces_and_quotes_are_taken_literally(
    machine: Machine, make: Callable[[str], ReleaseFile], release: Release, tmp_path: Path
) -> None:
    odd = replace(make("v1").release, root=str(tmp_path / "it's $HOME"))
    binary = store.resolve(odd)
    assert machine.run(binary) == "changed"
    assert machine.run(binary) == "unchanged"
    assert output_of(odd) == "v1"


def test_a_machine_of_another_architecture_is_refused(release: Release) -> None:
    with pytest.raises(ReleaseError, match=r"sliding-sync v0\.99\.19 cannot be installed on armhf"):
        replace(release, arch="armhf")


# --- the stand-in ---


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the stand-in needs: a homeserver, and a psql that records how it was called."""

    class Homeserver(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"versions": ["v1.1", "v1.11"]}).encode()
            self.send_response(200 if self.path == "/_matrix/client/versions" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    psql = tmp_path / "bin" / "psql"
    psql.parent.mkdir()
    psql.write_text('#!/bin/sh\n{ echo "arguments: $*"; env; cat; } >"${0%/*}/psql.log"\n')
    psql.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with HTTPServer(("127.0.0.1", 0), Homeserver) as homeserver:
        threading.Thread(target=homeserver.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield {
            "PATH": f"{psql.parent}:{os.environ['PATH']}",
            "SYNCV3_SERVER": f"http://127.0.0.1:{homeserver.server_address[1]}",
            "SYNCV3_DB": "user=sliding-sync dbname=syncv3 host=/run/postgresql password='it\\'s secret'",
            "SYNCV3_SECRET": "sixty-four hex digits",
            "SYNCV3_BINDADDR": f"127.0.0.1:{port}",
        }
        homeserver.shutdown()


def test_the_standin_connects_as_the_proxy_and_identifies_itself(environment: dict[str, str], tmp_path: Path) -> None:
    url = f"http://{environment['SYNCV3_BINDADDR']}"
    with subprocess.Popen([STANDIN], env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "listens" in line:
                    break
            with urlopen(f"{url}/client/server.json", timeout=5) as answer:  # noqa: S310
                content = json.load(answer)
            with pytest.raises(OSError, match="404"):
                urlopen(f"{url}/_matrix/client/unstable/org.matrix.msc3575/sync", timeout=5)  # noqa: S310
        finally:
            process.terminate()
    assert content == {"server": environment["SYNCV3_SERVER"], "version": "stand-in", "stand_in": True}
    called = (tmp_path / "bin" / "psql.log").read_text().splitlines()
    assert "PGHOST=/run/postgresql" in called
    assert "PGUSER=sliding-sync" in called
    assert "PGPASSWORD=it's secret" in called
    assert "secret" not in called[0]
    assert any(line.startswith("CREATE TABLE") for line in called)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"SYNCV3_SECRET": ""}, "SYNCV3_SECRET must be set"),
        ({"SYNCV3_DB": "", "SYNCV3_SERVER": ""}, "SYNCV3_SERVER and SYNCV3_DB must be set"),
        ({"SYNCV3_SERVER": "http://127.0.0.1:9"}, "the homeserver of SYNCV3_SERVER does not answer"),
        ({"SYNCV3_DB": "hosst=/run/postgresql"}, "SYNCV3_DB: hosst not understood"),
        ({"SYNCV3_BINDADDR": "8009"}, "SYNCV3_BINDADDR is '8009'"),
        ({"PATH": "/nowhere"}, "psql cannot be run"),
    ],
)
def test_the_standin_reports_in_one_line_what_is_missing(
    change: dict[str, str], complaint: str, environment: dict[str, str]
) -> None:
    done = subprocess.run([STANDIN], env=environment | change, capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stand-in for the Sliding Sync proxy: ")
    assert complaint in last
    assert "Traceback" not in done.stderr
