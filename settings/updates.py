"""Security updates: which of Debian's packages a machine replaces by itself, and when."""

from dataclasses import dataclass
from typing import Self

from pydantic import Field

from roles import UPDATES_JOBS
from settings.deployment import Settings, View
from settings.fields import A_TIME, Chosen, TimeOfDay

# Of Debian's releases, as unattended-upgrades writes it: it knows the name of the machine's release.
_SECURITY = (
    "origin=Debian,codename=${distro_codename},label=Debian-Security",
    "origin=Debian,codename=${distro_codename}-security,label=Debian-Security",
)
_OTHERS = (
    "origin=Debian,codename=${distro_codename},label=Debian",
    "origin=Debian,codename=${distro_codename}-updates,label=Debian",
)


class Choices(Chosen):
    """The settings of the updates."""

    updates_time: TimeOfDay = Field(description=A_TIME.format(example="04:00"))
    updates_reboot: bool = Field(description="True or False")
    updates_point_releases: bool = Field(description="True or False")


@dataclass(frozen=True)
class Updates(View):
    """What is installed on this machine, and when."""

    time: str
    reboot: bool
    origins: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        choices = settings.section(Choices)
        origins = (*_SECURITY, *(_OTHERS if choices.updates_point_releases else ()))
        return cls(choices.updates_time, choices.updates_reboot, origins)

    def when(self, job: str) -> str:
        """When systemd starts one of Debian's jobs, as OnCalendar=. The lists are read in the hour before."""
        hour, minute = map(int, self.time.split(":"))
        if job == UPDATES_JOBS[0]:
            hour = (hour - 1) % 24
        return f"*-*-* {hour:02}:{minute:02} UTC"

    def spread(self, job: str) -> str:
        """By how much a job may begin later, so that not all machines of the world ask Debian's mirrors at once."""
        return "45min" if job == UPDATES_JOBS[0] else "0"


VIEW = Updates
