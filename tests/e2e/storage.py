"""Where backups go besides a directory: S3 storage on this machine, an account for SFTP on a host. And how data are lost."""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.testbed import Host
from tests.testbed.network import CONTROLLER_NAME

EMPTY = """
systemctl stop 'matrix-metal-backup-*.timer' 'matrix-metal-backup-*.service' matrix-synapse sydent caddy
pg_dropcluster --stop $(pg_lsclusters -h | awk '{ print $1, $2 }')
cd /var/lib && rm -rf matrix-synapse sydent caddy matrix-stickers matrix-metal/backup /etc/matrix-synapse/conf.d/mine.yaml
"""

# A small S3 server, which checks signatures and keeps objects as files.
SERVER = "nanio==0.1.7"
UV = str(Path(sys.executable).parent / "uv")


class S3:
    """S3 storage with one bucket, over TLS with an authority of its own, for as long as the block."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.authority = directory, directory / "authority.pem"
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_urlsafe(24)
        self.bucket = directory / "data" / "matrix-backup"

    def __enter__(self) -> Self:
        self.bucket.mkdir(parents=True)
        self._certify()
        with socket.socket() as free:
            free.bind(("", 0))
            self.port = free.getsockname()[1]
        server = ["uvicorn", "--factory", "nanio.app:build_app", "--host", "::", "--port", str(self.port)]
        tls = [
            "--ssl-certfile",
            str(self.directory / "server.pem"),
            "--ssl-keyfile",
            str(self.directory / "server.key"),
        ]
        given = {"DATA_DIR": str(self.directory / "data"), "ACCESS_KEY": self.access_key, "SECRET_KEY": self.secret_key}
        self.log = self.directory / "log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [UV, "run", "--quiet", "--no-project", "--python", sys.executable, "--with", SERVER, *server, *tls],
                cwd=self.directory,
                env={**os.environ, **{f"NANIO_{name}": value for name, value in given.items()}},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 120
        while "Uvicorn running" not in self.log.read_text():
            assert self._process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(30)

    @property
    def target(self) -> str:
        return f"s3://{CONTROLLER_NAME}:{self.port}/{self.bucket.name}/matrix"

    def trusted_by(self, host: Host) -> None:
        """The host trusts its authority, as it does public ones."""
        host.run("install -d /usr/local/share/ca-certificates")
        host.put(self.authority, "/usr/local/share/ca-certificates/storage.crt")
        install = "apt-get update -qq && apt-get install -qq -y --no-install-recommends ca-certificates"
        host.run(f"command -v update-ca-certificates || {{ {install}; }}; update-ca-certificates", timeout=120)

    def _certify(self) -> None:
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        name = f"subjectAltName=DNS:{CONTROLLER_NAME}"
        ca = [
            "-x509",
            *new,
            "-subj",
            "/CN=authority of the storage",
            "-keyout",
            "authority.key",
            "-out",
            "authority.pem",
        ]
        signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-addext", name]
        own = ["-x509", *new, *signed, "-subj", f"/CN={CONTROLLER_NAME}", "-keyout", "server.key", "-out", "server.pem"]
        for words in (ca, [*own, "-addext", "basicConstraints=critical,CA:FALSE"]):
            subprocess.run(["openssl", "req", *words], cwd=self.directory, check=True, capture_output=True)


class Sftp:
    """An account on a host whose key can do nothing but transfer files."""

    def __init__(self, host: Host, public_key: str) -> None:
        self.host = host
        host.run(
            "useradd -m keeper; install -d -o keeper -g keeper /srv/matrix; install -d -m 700 -o keeper -g keeper ~keeper/.ssh; "
            "cat >~keeper/.ssh/authorized_keys",
            stdin=f'restrict,command="internal-sftp" {public_key}\n',
        )

    @property
    def target(self) -> str:
        return f"sftp://keeper@{self.host.domain}:22/srv/matrix"

    @property
    def host_key(self) -> str:
        shown = re.match(r"\S+ \S+", self.host.run("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout)
        assert shown
        return shown[0]


def lose_data(host: Host) -> None:
    """As if the disk with the data were a new one; programs and configuration are on another."""
    host.run(EMPTY, timeout=120)
