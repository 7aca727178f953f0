"""What every machine needs, whatever its roles."""

import json

from pyinfra import host

from operations import deployment, files, packages, virtualenvs
from operations.files import Directory, Text
from operations.machine import MARKER
from settings import settings_of

settings = settings_of(host)

deployment.vault_kept(name="Keep the secrets in the vault", vault=settings.vault)

files.present(
    name="Mark the machine as part of this deployment",
    entries=[
        Directory("/etc/matrix-metal", mode="755"),
        Text(MARKER, json.dumps({"server_name": settings.server_name, "vault": settings.vault.id}) + "\n", mode="644"),
    ],
)

packages.installed(
    name="Install Python and the certificate authorities",
    packages=["ca-certificates", "curl", "openssl", "python3-venv"],
)

# Virtualenvs take the processor and PyPI, packages take the disk and the mirror: side by side they take half the time.
virtualenvs.begun(name="Begin to build the virtualenvs", virtualenvs=settings.virtualenvs)
