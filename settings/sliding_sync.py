"""The Sliding Sync proxy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from releases import Release
from roles import SLIDING_SYNC, SLIDING_SYNC_SOCKET, SYNAPSE
from settings.deployment import Settings, View
from settings.fields import SHA256S, Chosen, Https, Sha256s, sha256_for
from settings.postgres import DatabaseAccess, database_of
from vault import Secret

VERSION = "v0.99.19"


class Choices(Chosen):
    """The settings of the proxy."""

    sliding_sync_binary: str | None = Field(description="None or the path of a program on this computer")
    sliding_sync_sha256: Sha256s = Field(description=SHA256S)
    sliding_sync_releases: Https = Field(description="an https URL")


def release_of(choices: Choices, architecture: str, record: Path) -> Release:
    """The release for a machine of this architecture. record: the file that first downloads are recorded in."""
    return Release(
        name="sliding-sync",
        version=VERSION,
        arch=architecture,
        url=f"{choices.sliding_sync_releases.rstrip('/')}/{VERSION}/syncv3_linux_{architecture}",
        file=Path(choices.sliding_sync_binary) if choices.sliding_sync_binary else None,
        sha256=sha256_for(architecture, choices.sliding_sync_sha256),
        record=record,
        file_setting="sliding_sync_binary",
        sha256_setting="sliding_sync_sha256",
        licence="Apache-2.0",
    )


@dataclass(frozen=True)
class SlidingSync(View):
    """homeserver_url: where it reaches Synapse, on the same machine."""

    domain: str
    socket: str
    homeserver_url: str
    database: DatabaseAccess
    secret: Secret
    release: Release

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            domain=settings.domain(SLIDING_SYNC),
            socket=SLIDING_SYNC_SOCKET,
            homeserver_url=f"http://127.0.0.1:{SYNAPSE.port}",
            database=database_of(settings, SLIDING_SYNC),
            secret=settings.vault.get("sliding_sync_secret"),
            release=release_of(
                settings.section(Choices), settings.machine.architecture, settings.vault_path.with_suffix(".lock")
            ),
        )

    @classmethod
    def well_known(cls, settings: Settings) -> Mapping[str, Any]:
        return {"org.matrix.msc3575.proxy": {"url": f"https://{settings.domain(SLIDING_SYNC)}"}}

    @property
    def dsn(self) -> str | Secret:
        """The connection string of its database; a Secret if it contains a password."""
        return Secret(self.database.dsn) if self.database.password else self.database.dsn

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Where Caddy reaches it, in the syntax of the Caddyfile."""
        return (f"unix/{self.socket}",)

    @property
    def web_names(self) -> Sequence[str]:
        return (self.domain,)

    @property
    def programs(self) -> Sequence[Release]:
        return (self.release,)


VIEW = SlidingSync
