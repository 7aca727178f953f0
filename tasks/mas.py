"""The Matrix Authentication Service: accounts and log-ins. Synapse asks it to whom a token belongs."""

from typing import Any

from pyinfra import host

from operations import accounts, files, releases, units
from operations.files import Directory, Template, secret_file
from operations.programs import Program
from roles import CHECK_MAS, MAS, MAS_ARGUMENTS, MAS_CONFIGURATION, SOCKET_GROUP, SYNAPSE
from settings import settings_of
from settings.mas import Mas
from settings.postgres import Postgres, database_of
from vault import Secret

settings = settings_of(host)
mas = settings.view(Mas)
[UNIT] = MAS.units
[HOME] = UNIT.reads
OWNED: Any = {"user": "root", "group": "mas"}
SECRETS: dict[str, Secret | None] = {
    "encryption": mas.encryption_secret,
    "signing.pem": mas.signing_key,
    "synapse": mas.synapse_secret,
    "admin_client": mas.admin_client_secret,
    "postgresql": mas.database.password,
    "smtp": mas.mail.password,
    **{provider.secret: secret for provider, secret in mas.sso},
}

configuration = [
    Template(MAS_CONFIGURATION[0], "mas/config.yaml", mode="640", values={"mas": mas}, **OWNED),
    *(secret_file(f"{HOME}/secrets/{name}", secret, mode="640", **OWNED) for name, secret in SECRETS.items()),
]
program = Program(MAS.title, mas.release, UNIT.name, files=[entry.path for entry in configuration])
releases.installed(
    name="Install the Matrix Authentication Service",
    file=releases.obtain(mas.release, settings.machine.releases),
    program=program,
)
files.present(
    name="Configure the Matrix Authentication Service",
    entries=[
        Directory(HOME, mode="750", **OWNED),
        Directory(f"{HOME}/secrets", mode="750", **OWNED),
        *configuration,
    ],
)
files.present(
    name="Confine the Matrix Authentication Service",
    entries=[
        Template(
            f"/etc/systemd/system/{UNIT.name}",
            "mas/mas.service",
            mode="644",
            values={
                "program": mas.release.executable,
                "arguments": MAS_ARGUMENTS,
                "socket_group": SOCKET_GROUP,
                "release": settings.machine.release,
            },
        )
    ],
)
if settings.migration == "move":
    synapse = database_of(settings, SYNAPSE)
    accounts.moved(
        name="Move Synapse's accounts to the Matrix Authentication Service",
        configuration=MAS_CONFIGURATION,
        host=synapse.host,
        port=synapse.port,
        database=synapse.name,
        owner=synapse.user,
        cluster=settings.view(Postgres).cluster if settings.here("postgres") else None,
        authority=synapse.authority,
        passwords=None if settings.here("postgres") else "/etc/matrix-synapse/secrets/postgresql",
    )
units.running(
    name="Run the Matrix Authentication Service",
    unit=UNIT.name,
    reads=[
        *program.files,
        "/opt/mas/current",
        mas.release.executable,
        *settings.private_authorities,
    ],
    check=CHECK_MAS,
    ready=UNIT.health,
    program=program,
    own=UNIT.own,
    own_check=UNIT.check,
)
