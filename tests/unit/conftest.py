"""Fixtures: a release page, a release on it, and a machine to install it on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from releases import Release
from settings.sliding_sync import VERSION
from tests.standin.release_server import ReleaseServer
from tests.unit.installing import HERE, PATH, THERE, Machine, program


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReleaseServer]:
    files: dict[str, bytes | Path] = {f"{PATH}/syncv3_linux_{arch}": program(arch) for arch in (HERE, THERE)}
    with ReleaseServer(files) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def release(server: ReleaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Release(
        name="sliding-sync",
        version=VERSION,
        arch=HERE,
        url=f"{server.url}/{PATH}/syncv3_linux_{HERE}",
        record=tmp_path / "inventories" / "prod.lock",
        file_setting="sliding_sync_binary",
        sha256_setting="sliding_sync_sha256",
        root=str(tmp_path / "opt"),
    )


@pytest.fixture
def machine() -> Machine:
    return Machine()
