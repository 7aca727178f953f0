"""Caddy: the only program on the web ports, and the only ACME client."""

from pyinfra import host

from operations import certificates, files, units
from operations.files import Copy, Directory, Template
from roles import CADDY, PRESENT_CERTIFICATE, SOCKET_GROUP
from settings import settings_of
from settings.caddy import Caddy
from settings.issuers import STORE

settings = settings_of(host)
[UNIT] = CADDY.units
caddy = settings.view(Caddy)
[CADDYFILE] = UNIT.rereads
DROP_INS = f"/etc/systemd/system/{UNIT.name}.d"
OVERRIDE = f"{DROP_INS}/override.conf"

files.present(
    name="Configure Caddy",
    entries=[
        Template(
            CADDYFILE,
            "caddy/Caddyfile",
            mode="640",
            group="caddy",
            values=caddy.values(),
            # As Caddy's user, so that a file which it may not read is noticed as well.
            check="runuser -u caddy -- env HOME=/var/lib/caddy caddy validate --adapter caddyfile --config {}",
        ),
    ],
)
files.present(
    name="Confine Caddy",
    entries=[
        Directory("/etc/sysusers.d", mode="755"),
        Template(
            "/etc/sysusers.d/matrix-caddy.conf",
            "caddy/sysusers.conf",
            mode="644",
            values={"socket_group": SOCKET_GROUP},
            check="systemd-sysusers {}",
        ),
        Directory(DROP_INS, mode="755"),
        Template(
            OVERRIDE,
            "caddy/override.conf",
            mode="644",
            values={"caddy": caddy, "socket_group": SOCKET_GROUP, "release": settings.machine.release},
        ),
    ],
)
units.running(
    name="Run Caddy",
    unit=UNIT.name,
    reads=[OVERRIDE],
    rereads=[CADDYFILE],
    ready=UNIT.health,
)
if settings.choices.tls == "internal":
    certificates.trusted(
        name="Trust Caddy's internal authority on this machine",
        certificate=f"{STORE}/pki/authorities/local/root.crt",
        label=CADDY.authority,
    )
if caddy.issuer.kind == "files" and caddy.domains:
    values = {"caddy": caddy, "domain": caddy.domains[0], "program": PRESENT_CERTIFICATE}
    files.present(
        name="Reload Caddy on renewal",
        entries=[
            Copy(PRESENT_CERTIFICATE, "certificates/present-certificate", mode="755"),
            *(
                Template(f"/etc/systemd/system/{unit}", f"caddy/{unit}", mode="644", values=values)
                for unit in (f"{caddy.reloader}.service", f"{caddy.reloader}.path")
            ),
        ],
    )
    units.running(
        name="Watch Caddy's certificate",
        unit=f"{caddy.reloader}.path",
        # The service that it starts: systemd has to read its definition again as well.
        reads=[f"/etc/systemd/system/{caddy.reloader}.service"],
    )
