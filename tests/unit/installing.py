"""Helpers of the tests of release files: programs, and this machine as one to install them on."""

import hashlib
import platform
import struct
from pathlib import Path
from typing import Literal

from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.api.state import State, StateStage
from pyinfra.context import ctx_host, ctx_state

from operations import releases
from releases import Release, ReleaseFile
from settings.sliding_sync import VERSION

PATH = f"matrix-org/sliding-sync/releases/download/{VERSION}"
HERE = "arm64" if platform.machine() == "aarch64" else "amd64"
THERE = "amd64" if HERE == "arm64" else "arm64"


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def program(arch: str = HERE, *, text: bytes = b"") -> bytes:
    """A real program of this machine, marked as one for another machine if asked for."""
    content = bytearray(Path("/bin/true").resolve().read_bytes())
    struct.pack_into("<H", content, 18, {"amd64": 62, "arm64": 183, "riscv64": 243}[arch])
    return bytes(content) + text


def installed_files(release: Release) -> list[str]:
    return sorted(path.name for path in (Path(release.home)).iterdir())


class Machine:
    """This machine, through pyinfra's local connector, with the program's root in a temporary directory."""

    def run(self, file: ReleaseFile) -> Literal["changed", "unchanged", "failed"]:
        with self._connected() as state:
            add_op(state, releases.installed, name="Install it", file=file)
            try:
                run_ops(state)
            except PyinfraError:
                return "failed"
            results = next(iter(state.results.values()))
            assert results.ops == results.success_ops == 1
            meta = next(iter(next(iter(state.ops.values())).values())).operation_meta
            return "changed" if meta.did_change() else "unchanged"

    def dry_run(self, file: ReleaseFile) -> bool:
        """Whether something would change."""
        with self._connected() as state:
            add_op(state, releases.installed, name="Install it", file=file)
            return bool(next(iter(state.meta.values())).ops_change)

    def obtain(self, release: Release) -> ReleaseFile:
        with self._connected() as state, ctx_state.use(state), ctx_host.use(next(iter(state.inventory))):
            present = {f"{release.name}/{path.name}" for path in Path(release.home).glob("*-????????????")}
            return releases.obtain(release, present)

    def _connected(self) -> "_Connected":
        return _Connected()


class _Connected:
    def __enter__(self) -> State:
        self.state = State(Inventory((["@local"], {})), Config())  # type: ignore[no-untyped-call]
        self.state.current_stage = StateStage.Prepare
        connect_all(self.state)
        return self.state

    def __exit__(self, *_: object) -> None:
        disconnect_all(self.state)
