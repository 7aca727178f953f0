"""Sydent, the identity server: finds users by e-mail address. For Element Web and the classic apps."""

from typing import Any

from pyinfra import host

from operations import files, units, virtualenvs
from operations.files import Copy, Directory, Template
from operations.programs import Program
from operations.templating import TEMPLATES
from roles import SYDENT
from settings import settings_of
from settings.sydent import Sydent

settings = settings_of(host)
[UNIT] = SYDENT.units
sydent = settings.view(Sydent)
[CONFIGURATION], [HOME], [STATE] = UNIT.secrets, UNIT.reads, SYDENT.state
BRAND = TEMPLATES / "sydent/brand"
OWNED: Any = {"user": "root", "group": "sydent"}
TEXTS = f"{sydent.templates_path}/{sydent.brand}"
texts = [
    *(Copy(f"{TEXTS}/{path.name}", f"sydent/brand/{path.name}", mode="644") for path in sorted(BRAND.iterdir())),
    # Values that Sydent does not pass to its templates.
    Template(f"{TEXTS}/site.j2", "sydent/site.j2", mode="644", values={"sydent": sydent}),
]

program = Program(SYDENT.title, sydent.virtualenv, UNIT.name, files=[CONFIGURATION, *(text.path for text in texts)])
virtualenvs.in_use(name="Install Sydent", virtualenv=sydent.virtualenv, program=program)
files.present(
    name="Configure Sydent",
    entries=[
        Directory(HOME, mode="750", **OWNED),
        Directory(STATE, mode="750", user="sydent", group="sydent"),
        Directory(sydent.templates_path, mode="755"),
        Directory(TEXTS, mode="755"),
        *texts,
        Template(CONFIGURATION, "sydent/sydent.conf", mode="640", values={"sydent": sydent}, **OWNED),
    ],
)
files.present(
    name="Confine Sydent",
    entries=[
        Template(
            f"/etc/systemd/system/{UNIT.name}",
            "sydent/sydent.service",
            mode="644",
            values={
                "configuration": CONFIGURATION,
                "python": f"{sydent.virtualenv.current}/bin/python",
                "release": settings.machine.release,
            },
        )
    ],
)
units.running(
    name="Run Sydent",
    unit=UNIT.name,
    reads=[*program.files, sydent.virtualenv.current, *settings.private_authorities],
    ready=UNIT.health,
    program=program,
)
