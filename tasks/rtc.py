"""LiveKit carries calls of Element X and Element Web; lk-jwt-service decides who may join one."""

from typing import Any

from pyinfra import host

from operations import files, releases, units
from operations.files import Directory, Template, Text, secret_file
from operations.programs import Program
from roles import RTC
from settings import settings_of
from settings.rtc import Rtc

settings = settings_of(host)
rtc = settings.view(Rtc)
SFU, SERVICE = RTC.units
[LIVEKIT], [LK_JWT] = SFU.reads, SERVICE.reads
OF_LIVEKIT: Any = {"user": "root", "group": "livekit"}
OF_LK_JWT: Any = {"user": "root", "group": "lk-jwt"}

livekit = [
    Template(f"{LIVEKIT}/livekit.yaml", "rtc/livekit.yaml", mode="640", values={"rtc": rtc}, **OF_LIVEKIT),
    Template(f"{LIVEKIT}/keys.yaml", "rtc/keys.yaml", mode="640", values={"rtc": rtc}, **OF_LIVEKIT),
    secret_file(f"{LIVEKIT}/turn_secret", rtc.relay_secret, mode="640", **OF_LIVEKIT),
]
lk_jwt = [
    Template(f"{LK_JWT}/environment", "rtc/environment", mode="640", values={"rtc": rtc}, **OF_LK_JWT),
    Text(f"{LK_JWT}/secret", rtc.secret, mode="640", **OF_LK_JWT),
    Template(f"{LK_JWT}/log.sed", "rtc/log.sed", mode="640", values={}, **OF_LK_JWT),
]
livekit_program = Program(RTC.title_of(SFU), rtc.releases.livekit, SFU.name, files=[entry.path for entry in livekit])
lk_jwt_program = Program(
    RTC.title_of(SERVICE), rtc.releases.lk_jwt, SERVICE.name, files=[entry.path for entry in lk_jwt]
)
releases.installed(
    name="Install LiveKit",
    file=releases.obtain(rtc.releases.livekit, settings.machine.releases),
    program=livekit_program,
)
releases.installed(
    name="Install lk-jwt-service",
    file=releases.obtain(rtc.releases.lk_jwt, settings.machine.releases),
    program=lk_jwt_program,
)
files.present(
    name="Configure LiveKit",
    entries=[Directory(LIVEKIT, mode="750", **OF_LIVEKIT), *livekit],
)
files.present(
    name="Configure lk-jwt-service",
    entries=[Directory(LK_JWT, mode="750", **OF_LK_JWT), *lk_jwt],
)
files.present(
    name="Confine LiveKit",
    entries=[
        Template(
            f"/etc/systemd/system/{unit.name}",
            f"rtc/{unit.name}",
            mode="644",
            values={
                "program": release.executable,
                "directory": directory,
                "port": rtc.signal_port,
                "release": settings.machine.release,
            },
        )
        for unit, release, directory in (
            (SFU, rtc.releases.livekit, LIVEKIT),
            (SERVICE, rtc.releases.lk_jwt, LK_JWT),
        )
    ],
)
units.running(
    name="Run LiveKit",
    unit=SFU.name,
    reads=[*livekit_program.files, "/opt/livekit/current", rtc.releases.livekit.executable],
    ready=SFU.health,
    program=livekit_program,
)
units.running(
    name="Run lk-jwt-service",
    unit=SERVICE.name,
    reads=[
        *lk_jwt_program.files,
        "/opt/lk-jwt-service/current",
        rtc.releases.lk_jwt.executable,
        # It connects to homeservers, ours among them.
        *settings.private_authorities,
    ],
    ready=SERVICE.health,
    program=lk_jwt_program,
)
