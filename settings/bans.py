"""Bans: from which failures on an address is banned, for how long, and who never is."""

import ipaddress
from dataclasses import dataclass, replace
from typing import Self

from pydantic import Field

from operations.users import Account
from roles import BANS_DATABASE, BANS_HOME, BANS_JAIL, BANS_RUN, BANS_TABLE, Role, Unit
from settings.deployment import Settings, View
from settings.fields import AnyNetwork, Chosen

# What Caddy logs of an address of IPv6 (caddy/Caddyfile), and what is banned of it.
PREFIX = 64
MINUTE, DAY = 60, 24 * 60 * 60


class Choices(Chosen):
    """The settings of the bans."""

    bans_attempts: int = Field(ge=2, le=1000, description="a number from 2 to 1000")
    bans_window_minutes: int = Field(ge=1, le=1440, description="a number of minutes from 1 to 1440")
    bans_first_minutes: int = Field(ge=1, le=1440, description="a number of minutes from 1 to 1440")
    bans_longest_days: int = Field(ge=1, le=365, description="a number of days from 1 to 365")
    bans_exempt: list[AnyNetwork] = Field(
        description='a list of addresses and networks, such as ["192.0.2.7", "2001:db8::/48"]'
    )


@dataclass(frozen=True)
class Bans(View):
    """window, first, longest, remembered: seconds. exempt: networks that are never banned.

    ports: the ports that a banned address does not reach, such as "49152-65535", by their protocol.
    """

    attempts: int
    window: int
    first: int
    longest: int
    remembered: int
    exempt: tuple[str, ...]
    ports: dict[str, tuple[str, ...]]
    home: str = BANS_HOME
    run: str = BANS_RUN
    database: str = BANS_DATABASE
    table: str = BANS_TABLE
    jail: str = BANS_JAIL

    @classmethod
    def of(cls, settings: Settings) -> Self:
        choices = settings.section(Choices)
        own = [address for _, address in settings.machine.interfaces]
        ports: dict[str, tuple[str, ...]] = {}
        for role in settings.played:
            for port in settings.listens(role):
                if port.reach != "machine":
                    number = f"{port.number}-{port.last}" if port.last else str(port.number)
                    ports[port.protocol] = (*ports.get(port.protocol, ()), number)
        longest = choices.bans_longest_days * DAY
        return cls(
            attempts=choices.bans_attempts,
            window=choices.bans_window_minutes * MINUTE,
            first=choices.bans_first_minutes * MINUTE,
            longest=longest,
            # Who comes back right after the longest ban gets it again.
            remembered=2 * longest,
            exempt=tuple(dict.fromkeys(map(banned_as, ("127.0.0.0/8", "::1", *own, *choices.bans_exempt)))),
            ports=ports,
        )

    @classmethod
    def account(cls, role: Role, unit: Unit, name: str) -> Account:
        return replace(super().account(role, unit, name), group="systemd-journal")


def banned_as(network: str) -> str:
    """What is banned with an address or network: of IPv6 a whole /64 at least. Raises ValueError."""
    found = ipaddress.ip_network(network)
    if found.version == 6 and found.prefixlen > PREFIX:
        found = found.supernet(new_prefix=PREFIX)
    return str(found)


VIEW = Bans
