"""Synapse, the homeserver."""

from typing import Any

from pyinfra import host

from operations import files, schema, units, virtualenvs
from operations.files import Absent, Copy, Directory, Template, Text, secret_file
from operations.programs import Program
from operations.shell import quoted
from roles import CHECK_SYNAPSE, SOCKET_GROUP, SYNAPSE, SYNAPSE_ARGUMENTS
from settings import settings_of
from settings.networks import BLOCKED_NETWORKS, MULTICAST
from settings.synapse import Synapse
from vault import Secret

settings = settings_of(host)
[UNIT] = SYNAPSE.units
synapse = settings.view(Synapse)
[HOME], [STATE] = UNIT.reads, SYNAPSE.state
RUN_SYNAPSE = "/usr/local/lib/run-synapse"
OWN: Any = {"user": "matrix-synapse", "group": "matrix-synapse"}
OWNED: Any = {"user": "root", "group": "matrix-synapse"}
SECRETS: dict[str, Secret | None] = {
    "registration_shared_secret": synapse.registration_shared_secret,
    "macaroon_secret_key": synapse.macaroon_secret_key,
    "form_secret": synapse.form_secret,
    "mas": synapse.mas_secret,
    "antispam": synapse.antispam_token,
    # The first is in every client, and a secret for Synapse only.
    "recaptcha_site_key": Secret(synapse.captcha.site_key) if synapse.captcha else None,
    "recaptcha": synapse.captcha_secret,
    "turn_shared_secret": synapse.turn_shared_secret,
}

# libpq ignores a password file that anybody else may read, the group included.
password_file = Secret(synapse.database.password_file) if synapse.database.password else None
# Whether there are any is also in homeserver.yaml, so that Synapse is restarted when they go.
REPORTS, TOLD = "/usr/local/lib/synapse-reports", [f"{HOME}/{name}.json" for name in ("reports", "alerts")]
told = dict(zip(TOLD, (synapse.moderators, synapse.administrators), strict=True))
reports = [
    Copy(REPORTS, "synapse/synapse-reports", mode="644") if any(told.values()) else Absent(REPORTS),
    *(Text(path, people, mode="640", **OWNED) if people else Absent(path) for path, people in told.items()),
]
configuration = [
    Copy(RUN_SYNAPSE, "synapse/run-synapse", mode="644"),
    *reports,
    Template(
        f"{HOME}/homeserver.yaml",
        "synapse/homeserver.yaml",
        mode="640",
        values={"synapse": synapse, "blocked_networks": [*BLOCKED_NETWORKS, *MULTICAST]},
        **OWNED,
    ),
    Template(f"{HOME}/log.yaml", "synapse/log.yaml", mode="640", **OWNED),
    Template(
        f"{HOME}/conf.d/email.yaml",
        "synapse/email.yaml",
        mode="640",
        values={"synapse": synapse, "mail": synapse.mail, "pepper": synapse.password_pepper},
        **OWNED,
    ),
    *(secret_file(f"{HOME}/secrets/{name}", secret, mode="640", **OWNED) for name, secret in SECRETS.items()),
    secret_file(f"{HOME}/secrets/postgresql", password_file, mode="600", **OWN),
]
database = synapse.database
KEYWORDS = database.keywords(f"{HOME}/secrets/postgresql")
program = Program(
    SYNAPSE.title,
    synapse.virtualenv,
    UNIT.name,
    files=[entry.path for entry in configuration],
    compatible=schema.compatible(KEYWORDS),
    one_way=settings.choices.one_way,
)
virtualenvs.in_use(name="Install Synapse", virtualenv=synapse.virtualenv, program=program)
files.present(
    name="Configure Synapse",
    entries=[
        Directory(HOME, mode="750", **OWNED),
        Directory(f"{HOME}/conf.d", mode="750", **OWNED),
        Directory(f"{HOME}/secrets", mode="750", **OWNED),
        Directory(STATE, mode="750", **OWN),
        *configuration,
    ],
)
values = {"home": HOME, "state": STATE, "program": RUN_SYNAPSE, "arguments": SYNAPSE_ARGUMENTS}
values |= {"python": f"{synapse.virtualenv.current}/bin/python", "socket_group": SOCKET_GROUP}
values |= {"release": settings.machine.release}
files.present(
    name="Confine Synapse",
    entries=[Template(f"/etc/systemd/system/{UNIT.name}", "synapse/matrix-synapse.service", mode="644", values=values)],
)

as_synapse = f"runuser -u matrix-synapse -- {synapse.virtualenv.current}/bin"
units.running(
    name="Run Synapse",
    unit=UNIT.name,
    reads=[*program.files, synapse.virtualenv.current, *settings.private_authorities],
    # Synapse's own program makes the signing key, once.
    prepare=(
        f"( cd {STATE} && umask 077 && {{ [ -s signing.key ] || {as_synapse}/generate_signing_key -o signing.key; }} )"
    ),
    check=f"( {CHECK_SYNAPSE} )",
    ready=UNIT.health,
    program=program,
    # While its database does not work Synapse does not answer as it should, but a restart would not help.
    needs=f"( cd / && {as_synapse}/python -c {quoted(schema.reach(KEYWORDS))} )",
    patience=180,
    own=UNIT.own,
    own_check=UNIT.check,
    first_start_goes_on=True,
)
