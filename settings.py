"""The one typed, validated view of what the administrator chose.

    inventory + group_data  ->  settings_of(host)  ->  tasks/<role>.py  ->  templates/<role>/*

`Choices` says what may be chosen. `Settings` derives from it what each role works with: domain names, addresses, paths, and
where the roles find one another. Everything that can be wrong is found here, before any machine is touched.
"""

import difflib
import ipaddress
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pyinfra.api.host import Host
from pyinfra.context import inventory

from operations.binaries import Release
from operations.certificates import BUNDLE, Served
from operations.databases import Database
from operations.machine import Machine, MachineState
from operations.virtualenvs import Virtualenv
from vault import Secret, Vault

ROOT = Path(__file__).parent

# Which roles a role cannot do without. None: there may be several machines of it.
NEEDS: Mapping[str, Sequence[str]] = {
    "postgres": (),
    "caddy": (),
    "coturn": (),
    "synapse": ("postgres",),
    "sydent": (),
    "sliding_sync": ("postgres", "synapse"),
}
SEVERAL = {"caddy"}

POSTGRESQL_OF_DEBIAN = {"12": "15", "13": "17"}
POSTGRESQL_PORT = 5432
PYTHON_OF_DEBIAN = {"12": "3.11", "13": "3.13"}


class SettingError(Exception):
    """A choice that cannot be deployed. Its text has one line per mistake: what, where, what is allowed."""


# Database and user of each role that has one.
DATABASES = {"synapse": ("synapse", "matrix-synapse"), "sliding_sync": ("syncv3", "sliding-sync")}

# By role, tables of which at least one has rows once the first start is through (synapse/storage/prepare_database.py).
FIRST_FILLED = {"synapse": ("schema_version", "users", "events")}

# Where a machine keeps the certificate by which it knows the database server, if that is another machine.
DATABASE_AUTHORITY = "/etc/ssl/certs/matrix-metal-postgresql.pem"

# What may be called a private network: RFC 1918, RFC 6598 (carriers' NAT), RFC 4193.
PRIVATE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)

# Where Caddy reaches Synapse, on the same machine. Each lets 50 connections wait to be accepted, as Synapse fixes it, and a crowd
# of clients may come within the moment that Synapse takes for something else.
SYNAPSE_SOCKETS = tuple(f"/run/matrix-synapse/{number}.sock" for number in range(1, 9))

# Peers that no relay has business with: private, local and reserved networks, each also in the forms that carry an IPv4
# address inside IPv6 (CVE-2026-27624: coturn before 4.9 does not recognise them). Source: IANA's special-purpose registries.
NEVER_RELAYED_TO = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
)


# --- what may be chosen ---------------------------------------------------------------------------


def _domain(value: str) -> str:
    label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    if len(value) > 230 or not re.fullmatch(rf"({label}\.)+{label}", value) or re.fullmatch(r"[0-9.]+", value):
        raise ValueError
    return value


def _host(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return _domain(value)


def _mail_address(value: str) -> str:
    if not re.fullmatch(r"[^@\s<>\"',;:\\]+@[^@\s<>\"',;:\\]+\.[^@\s<>\"',;:\\]+", value):
        raise ValueError
    return value


def _https(value: str) -> str:
    url = urlsplit(value)
    if url.scheme != "https" or not url.hostname or re.search(r"\s", value):
        raise ValueError
    return value


def _size(value: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,5}[KMG]", value):
        raise ValueError
    return value


def _network(value: str) -> str:
    network = ipaddress.ip_network(value)
    # Never more than what people call their own: the relay is let into it, and would be into this machine's loopback.
    if not any(network.version == own.version and network.subnet_of(own) for own in PRIVATE):  # type: ignore[arg-type]
        raise ValueError
    return str(network)


def _ipv4(value: str) -> str:
    return str(ipaddress.IPv4Address(value))


def _absolute(value: str) -> str:
    # Such paths stand in units, in Caddyfiles and in shell.
    if not re.fullmatch(r"/[^\s\"'`{}%$;\\]+", value):
        raise ValueError
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError
    return value


def _user_name(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError
    return value


Domain = Annotated[str, AfterValidator(_domain)]
MailAddress = Annotated[str, AfterValidator(_mail_address)]
Https = Annotated[str, AfterValidator(_https)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
DOMAIN = "a domain name in lower-case letters, such as {example}"


class Chosen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Acme(Chosen):
    """An issuer of certificates. Source of the names: RFC 8555 and Caddy's documentation."""

    directory: Https = Field(description="the https URL of an ACME directory")
    email: MailAddress | None = Field(None, description="an e-mail address")
    eab_key_id: Annotated[str, AfterValidator(_user_name)] | None = Field(
        None, description="the issuer's key identifier"
    )
    eab_hmac_key: Annotated[str, AfterValidator(_user_name)] | None = Field(None, description="the issuer's key")
    trusted_root: AbsolutePath | None = Field(None, description="the absolute path of a PEM file on the machine")


class TlsFiles(Chosen):
    certificate: AbsolutePath = Field(description="the absolute path of a PEM file on the machine")
    key: AbsolutePath = Field(description="the absolute path of a PEM file on the machine")


class Choices(Chosen):
    """Every setting of group_data/all.py. Each description says what is allowed, in the words of the error message."""

    server_name: Domain = Field(description=DOMAIN.format(example="example.org"))
    matrix_domain: Domain | None = Field(description=DOMAIN.format(example="matrix.example.org"))
    identity_domain: Domain | None = Field(description=DOMAIN.format(example="identity.example.org"))
    sliding_sync_domain: Domain | None = Field(description=DOMAIN.format(example="sliding.example.org"))
    turn_domain: Domain | None = Field(description=DOMAIN.format(example="turn.example.org"))
    admin_email: MailAddress | None = Field(description="an e-mail address, such as admin@example.org")
    private_networks: list[Annotated[str, AfterValidator(_network)]] = Field(
        description='a list of private networks (RFC 1918, 6598, 4193), such as ["10.1.0.0/16"]'
    )
    tls: Literal["acme", "internal", "files"] = Field(description='"acme", "internal" or "files"')
    tls_files: TlsFiles | None = Field(description='{"certificate": "/path", "key": "/path"}')
    acme: Acme = Field(description='a dictionary such as {"directory": "https://..."}')
    turn_acme: Acme | None = Field(description='None or a dictionary such as {"directory": "https://..."}')
    registration: Literal["closed", "token", "open"] = Field(description='"closed", "token" or "open"')
    federation: bool = Field(description="True or False")
    federation_port_8448: bool = Field(description="True or False")
    max_upload_size: Annotated[str, AfterValidator(_size)] = Field(description='a size such as "50M" or "1G"')
    smtp_host: Domain | None = Field(description=DOMAIN.format(example="mail.example.org"))
    smtp_port: int = Field(description="a port from 1 to 65535", ge=1, le=65535)
    smtp_tls: Literal["none", "starttls", "tls"] = Field(description='"starttls", "tls" or "none"')
    smtp_username: Annotated[str, AfterValidator(_user_name)] | None = Field(description="None or a user name")
    mail_from: MailAddress | None = Field(description="an e-mail address, such as noreply@example.org")
    external_ip: Annotated[str, AfterValidator(_ipv4)] | None = Field(
        description="an IPv4 address, such as 198.51.100.7"
    )
    sliding_sync_binary: str | None = Field(description="None or the path of a program on this computer")
    sliding_sync_sha256: dict[Literal["amd64", "arm64"], Annotated[str, AfterValidator(_sha256)]] = Field(
        description='{} or 64 hexadecimal digits per architecture, such as {"amd64": "..."}'
    )
    sliding_sync_releases: Https = Field(description="an https URL")
    address: Annotated[str, AfterValidator(_host)] | None = Field(description="an IP address or a domain name")
    vault: str | None = Field(description="None or the path of a file ending in .vault")


def choices_from(data: Mapping[str, Any], deployment: str) -> Choices:
    """Validate group data. Raises SettingError with a line per mistake."""
    mistakes: list[str] = []
    where = f"group_data/{deployment}.py"
    for name in data:
        # pyinfra's own data (ssh_user, ...) and global arguments (_sudo, ...) travel with the settings.
        if name not in Choices.model_fields and not name.startswith(("_", "ssh_")):
            mistakes.append(f"{where}: there is no setting {name}{_nearest(name, Choices.model_fields)}")
    if data.get("server_name") is None:
        mistakes.append(f"{where}: server_name is missing: set it to {_allowed(Choices, ('server_name',))}")
    known = {name: data.get(name) for name in Choices.model_fields}
    try:
        return_value = Choices.model_validate(known)
    except ValidationError as error:
        for problem in error.errors():
            path = tuple(part for part in problem["loc"] if not isinstance(part, int))
            if path == ("server_name",) and data.get("server_name") is None:
                continue
            mistakes.append(f"{where}: {_mistake(known, path, problem['type'])}")
    if mistakes:
        raise SettingError("\n".join(dict.fromkeys(mistakes)))
    return return_value


def _mistake(data: Mapping[str, Any], path: tuple[Any, ...], kind: str) -> str:
    setting, *rest = path
    name = f"{setting}{''.join(f'[{part!r}]' for part in rest)}"
    value = data[setting]
    model: type[BaseModel] = Acme if setting in ("acme", "turn_acme") else TlsFiles
    if rest and kind == "extra_forbidden":
        return f"there is no {name}{_nearest(str(rest[0]), model.model_fields)}"
    if rest and kind == "missing":
        return f"{name} is missing: set it to {_allowed(Choices, path)}"
    if rest and isinstance(value, Mapping):
        value = value.get(rest[0])
    shown = "*****" if "hmac" in name else repr(value)
    return f"{name} = {shown} is not allowed: it must be {_allowed(Choices, path)}"


def _allowed(model: type[BaseModel], path: tuple[Any, ...]) -> str:
    setting, *rest = path
    nested: dict[str, type[BaseModel]] = {"acme": Acme, "turn_acme": Acme, "tls_files": TlsFiles}
    if rest and setting in nested and rest[0] in nested[setting].model_fields:
        return nested[setting].model_fields[rest[0]].description or ""
    return model.model_fields[setting].description or ""


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; group_data/all.py lists them all"


# --- what each role works with --------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbour:
    """Another machine of the deployment. address: where we reach it. addresses: all it has, one of which it comes from.

    database_port: where its PostgreSQL listens.
    """

    address: str
    addresses: tuple[str, ...] = ()
    database_port: int = POSTGRESQL_PORT

    @property
    def sources(self) -> tuple[str, ...]:
        """The addresses from which it may come. Behind 1:1 NAT that is the one where we reach it, which it does not know of."""
        try:
            reached = ipaddress.ip_address(self.address)
        except ValueError:
            return self.addresses
        known = [ipaddress.ip_address(address) for address in self.addresses]
        return self.addresses if reached in known or reached.is_loopback else (*self.addresses, str(reached))


@dataclass(frozen=True)
class DatabaseAccess:
    """How a role reaches its database.

    On the same machine: host is the Unix socket's directory, and the system user of the role's name needs no password. The
    port is part of the socket's name.
    On another: host is its address; password and authority (path of the certificate it must present) are set.
    """

    name: str
    user: str
    host: str = "/run/postgresql"
    password: Secret | None = None
    authority: str | None = None
    port: int = POSTGRESQL_PORT

    @property
    def dsn(self) -> str:
        """As libpq and lib/pq take it. It holds the password: for secret files only."""
        words = {"user": self.user, "dbname": self.name, "host": self.host, "sslmode": "disable"}
        if self.port != POSTGRESQL_PORT:
            words["port"] = str(self.port)
        if self.password and self.authority:
            words |= {"sslmode": "verify-full", "sslrootcert": self.authority, "password": self.password.reveal()}
        escaped = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in words.items()}
        return " ".join(f"{key}='{value}'" for key, value in escaped.items())

    @property
    def password_file(self) -> str:
        """A line for libpq's password file."""
        password = self.password.reveal() if self.password else ""
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        return f"*:*:*:{self.user}:{escaped}\n"


@dataclass(frozen=True)
class DatabaseClient:
    """A role on another machine that uses a database here, from one of these addresses."""

    database: str
    user: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Postgres:
    """version: PostgreSQL's major version. Memory in MiB. address: where other machines reach it."""

    version: str
    port: int
    shared_buffers: int
    effective_cache_size: int
    maintenance_work_mem: int
    work_mem: int
    databases: tuple[Database, ...]
    clients: tuple[DatabaseClient, ...]
    address: str

    @property
    def cluster(self) -> str:
        return f"{self.version}/main"

    @property
    def unit(self) -> str:
        return f"postgresql@{self.version}-main.service"

    @property
    def directory(self) -> str:
        return f"/etc/postgresql/{self.version}/main"

    @property
    def certificate(self) -> str:
        """What it shows to other machines; the key lies beside it."""
        return f"{self.directory}/matrix-metal.crt"


@dataclass(frozen=True)
class Mail:
    """How mails are sent. tls: "none", "starttls" or "tls". host None: nobody was named."""

    host: str | None
    port: int
    tls: str
    username: str | None
    password: Secret | None
    sender: str


@dataclass(frozen=True)
class Synapse:
    server_name: str
    public_url: str
    address: str
    port: int
    sockets: tuple[str, ...]
    virtualenv: Virtualenv
    database: DatabaseAccess
    identity_server_url: str | None
    turn_uris: tuple[str, ...]
    turn_shared_secret: Secret | None
    registration_shared_secret: Secret
    macaroon_secret_key: Secret
    form_secret: Secret
    registration: str
    federation: bool
    max_upload_size: str
    private_networks: tuple[str, ...]
    mail: Mail
    admin_email: str | None


@dataclass(frozen=True)
class Sydent:
    server_name: str
    public_url: str
    brand: str
    templates_path: str
    database: str
    bind_address: str
    port: int
    virtualenv: Virtualenv
    signing_key: Secret
    mail_from: str
    smtp_host: str
    smtp_port: int
    smtp_username: str | None
    smtp_password: Secret | None
    smtp_tls: str
    hostname: str
    ip_allowlist: tuple[str, ...]
    client_domain: str


@dataclass(frozen=True)
class SlidingSync:
    address: str
    port: int
    homeserver_url: str
    database: DatabaseAccess
    secret: Secret
    release: Release

    @property
    def dsn(self) -> str | Secret:
        """How it is told of its database: secret if it holds a password."""
        return Secret(self.database.dsn) if self.database.password else self.database.dsn


@dataclass(frozen=True)
class Issuer:
    """Where one site's certificate comes from. kind: "acme", "internal" or "files"."""

    kind: str
    directory: str = ""
    email: str = ""
    eab_key_id: str = ""
    eab_hmac_key: Secret | None = None
    trusted_root: str = ""
    certificate: str = ""
    key: str = ""

    def paths(self, domain: str) -> tuple[str, str]:
        """Certificate chain and key for the domain: as given, or where Caddy (CertMagic) stores them."""
        if self.kind == "files":
            return self.certificate, self.key
        issuer = "local"
        if self.kind == "acme":
            # CertMagic 0.17: ACMEIssuer.issuerKey and then KeyBuilder.Safe.
            url = urlsplit(self.directory)
            path = re.sub(r"[/\\]", "-", unquote(url.path)).strip("-")
            issuer = f"{url.netloc.rpartition('@')[2]}{'-' if path else ''}{path}".lower()
            for character, replacement in ((" ", "_"), ("+", "_plus_"), ("*", "wildcard_"), (":", "-"), ("..", "")):
                issuer = issuer.replace(character, replacement)
            issuer = re.sub(r"[^\w@.-]", "", issuer, flags=re.ASCII)
        stem = f"/var/lib/caddy/.local/share/caddy/certificates/{issuer}/{domain}/{domain}"
        return f"{stem}.crt", f"{stem}.key"


@dataclass(frozen=True)
class Caddy:
    """Domains are None where their role is not in the inventory or not on this machine."""

    server_name: str | None
    matrix_domain: str | None
    identity_domain: str | None
    sliding_sync_domain: str | None
    turn_domain: str | None
    issuer: Issuer
    turn_issuer: Issuer
    admin_email: str | None
    max_upload_bytes: int
    well_known_client: dict[str, Any]
    well_known_server: dict[str, Any] | None
    federation_port: int | None
    processors: int
    # Where each is reached, as Caddy writes it; requests go to all in turn.
    synapse: tuple[str, ...]
    sydent: tuple[str, ...]
    sliding_sync: tuple[str, ...]
    reloader: str = "caddy-certificate"

    @property
    def domains(self) -> list[str]:
        """The web names."""
        names = (self.server_name, self.matrix_domain, self.identity_domain, self.sliding_sync_domain)
        return [name for name in names if name]


@dataclass(frozen=True)
class Coturn:
    domain: str
    shared_secret: Secret
    certificate: str
    key: str
    watched: tuple[str, ...]
    external_ip: str | None
    denied_ranges: tuple[tuple[str, str], ...]
    allowed_ranges: tuple[tuple[str, str], ...]
    reloader: str = "coturn-certificate"


class Settings:
    """What one machine of a deployment works with.

    choices: the validated group data. roles: which machines play which role. name: this machine. machine: what it is.
    """

    def __init__(
        self,
        choices: Choices,
        deployment: str,
        roles: Mapping[str, Sequence[str]],
        name: str,
        machine: MachineState,
        neighbours: Mapping[str, Neighbour] | None = None,
        connected_at: str | None = None,
        inventories: Path = ROOT / "inventories",
    ) -> None:
        self.choices = choices
        self.deployment = deployment
        self.roles = {role: tuple(roles.get(role, ())) for role in NEEDS}
        self.name = name
        self.machine = machine
        self.neighbours = neighbours or {}
        self.connected_at = connected_at or name
        self.inventories = inventories

    # Names and places.

    @property
    def server_name(self) -> str:
        return self.choices.server_name

    @property
    def address(self) -> str:
        """Where the deployment's other machines reach this one."""
        return self.choices.address or self.connected_at

    @property
    def matrix_domain(self) -> str:
        return self.choices.matrix_domain or f"matrix.{self.server_name}"

    @property
    def identity_domain(self) -> str:
        return self.choices.identity_domain or f"identity.{self.server_name}"

    @property
    def sliding_sync_domain(self) -> str:
        return self.choices.sliding_sync_domain or f"sliding.{self.server_name}"

    @property
    def turn_domain(self) -> str:
        return self.choices.turn_domain or f"turn.{self.server_name}"

    def here(self, role: str) -> bool:
        """Whether this machine plays the role."""
        return self.name in self.roles[role]

    def exists(self, role: str) -> bool:
        """Whether any machine plays the role."""
        return bool(self.roles[role])

    # Secrets.

    @property
    def vault_path(self) -> Path:
        if self.choices.vault:
            return Path(self.choices.vault).expanduser()
        return self.inventories / f"{self.deployment}.vault"

    @cached_property
    def vault(self) -> Vault:
        return _vault(self.vault_path)

    # Rooms.

    @cached_property
    def postgres(self) -> Postgres:
        # Where the homeserver lives on the same machine, it needs more of the memory than the database.
        memory = self.machine.memory // (2 if self.here("synapse") else 1)
        remote = [role for role in DATABASES if self.exists(role) and not self.here(role)]
        version = _postgresql_version(self.machine)
        return Postgres(
            version=version,
            port=_postgresql_port(self.machine),
            shared_buffers=_between(32, memory // 4, 8192),
            effective_cache_size=_between(128, memory, 65536),
            maintenance_work_mem=_between(16, memory // 16, 1024),
            work_mem=_between(4, memory // 128, 32),
            databases=tuple(
                Database(
                    name,
                    user,
                    password=self._database_password(role) if role in remote else None,
                    first_filled=FIRST_FILLED.get(role, ()),
                )
                for role, (name, user) in DATABASES.items()
                if self.exists(role)
            ),
            clients=tuple(DatabaseClient(*DATABASES[role], addresses=self._neighbour(role).sources) for role in remote),
            address=self.address,
        )

    def _neighbour(self, role: str) -> Neighbour:
        """The machine that plays the role, which is another one."""
        name = self.roles[role][0]
        return self.neighbours.get(name, Neighbour(name))

    def _database_password(self, role: str) -> Secret:
        name = f"postgres_{role}_password"
        password = self.vault.get(name)
        if not password.reveal().isascii():
            # Only some of PostgreSQL's clients bring other characters into the form that SCRAM asks for (RFC 4013).
            raise SettingError(f"{name} must be ASCII: not every client of PostgreSQL can log in with anything else")
        return password

    def _database(self, role: str) -> DatabaseAccess:
        name, user = DATABASES[role]
        if self.roles["postgres"] == self.roles[role]:
            return DatabaseAccess(name, user, port=_postgresql_port(self.machine))
        server = self._neighbour("postgres")
        password = self._database_password(role)
        return DatabaseAccess(name, user, server.address, password, DATABASE_AUTHORITY, server.database_port)

    @cached_property
    def mail(self) -> Mail:
        choices = self.choices
        password = self.vault.get("smtp_password") if choices.smtp_username else None
        if self.exists("sydent") and not f"{choices.smtp_username}{password.reveal() if password else ''}".isascii():
            raise SettingError("smtp_username and smtp_password must be ASCII: Sydent cannot log in with anything else")
        return Mail(
            host=choices.smtp_host,
            port=choices.smtp_port,
            tls=choices.smtp_tls,
            username=choices.smtp_username,
            password=password,
            sender=choices.mail_from or f"noreply@{self.server_name}",
        )

    @cached_property
    def synapse(self) -> Synapse:
        turn = self.turn_domain
        uris = (
            f"turn:{turn}:3478?transport=udp",
            f"turn:{turn}:3478?transport=tcp",
            f"turns:{turn}:5349?transport=tcp",
        )
        return Synapse(
            server_name=self.server_name,
            public_url=f"https://{self.matrix_domain}/",
            address="127.0.0.1",
            port=8008,
            sockets=SYNAPSE_SOCKETS,
            virtualenv=Virtualenv("matrix-synapse", "synapse", self._python, imports="synapse.app.homeserver"),
            database=self._database("synapse"),
            identity_server_url=f"https://{self.identity_domain}" if self.exists("sydent") else None,
            turn_uris=uris if self.exists("coturn") else (),
            turn_shared_secret=self.vault.get("turn_shared_secret") if self.exists("coturn") else None,
            registration_shared_secret=self.vault.get("synapse_registration_shared_secret"),
            macaroon_secret_key=self.vault.get("synapse_macaroon_secret_key"),
            form_secret=self.vault.get("synapse_form_secret"),
            registration=self.choices.registration,
            federation=self.choices.federation,
            max_upload_size=self.choices.max_upload_size,
            private_networks=tuple(self.choices.private_networks),
            mail=self.mail,
            admin_email=self.choices.admin_email,
        )

    @cached_property
    def sydent(self) -> Sydent:
        mail = self.mail
        return Sydent(
            server_name=self.identity_domain,
            public_url=f"https://{self.identity_domain}",
            brand="matrix-metal",
            templates_path="/etc/sydent/templates",
            database="/var/lib/sydent/sydent.db",
            bind_address="127.0.0.1",
            port=8090,
            virtualenv=Virtualenv(
                "sydent", "sydent", self._python, imports="sydent.sydent", source_only=("signedjson",)
            ),
            signing_key=self.vault.get("sydent_signing_key"),
            mail_from=mail.sender,
            smtp_host=mail.host or "localhost",
            smtp_port=mail.port if mail.host else 25,
            smtp_username=mail.username,
            smtp_password=mail.password,
            smtp_tls=mail.tls if mail.host else "none",
            hostname=self.identity_domain,
            ip_allowlist=tuple(self.choices.private_networks),
            client_domain=self.server_name,
        )

    @cached_property
    def sliding_sync(self) -> SlidingSync:
        choices, version, architecture = self.choices, "v0.99.19", self.machine.architecture
        return SlidingSync(
            address="127.0.0.1",
            port=8009,
            homeserver_url=f"http://{self.synapse.address}:{self.synapse.port}",
            database=self._database("sliding_sync"),
            secret=self.vault.get("sliding_sync_secret"),
            release=Release(
                program="sliding-sync",
                version=version,
                arch=architecture,
                url=f"{choices.sliding_sync_releases.rstrip('/')}/{version}/syncv3_linux_{architecture}",
                file=Path(choices.sliding_sync_binary) if choices.sliding_sync_binary else None,
                sha256=next((value for key, value in choices.sliding_sync_sha256.items() if key == architecture), None),
                record=self.vault_path.with_suffix(".lock"),
                file_setting="sliding_sync_binary",
                sha256_setting="sliding_sync_sha256",
            ),
        )

    @cached_property
    def caddy(self) -> Caddy:
        client: dict[str, Any] = {"m.homeserver": {"base_url": f"https://{self.matrix_domain}"}}
        if self.exists("sydent"):
            client["m.identity_server"] = {"base_url": f"https://{self.identity_domain}"}
        if self.exists("sliding_sync"):
            client["org.matrix.msc3575.proxy"] = {"url": f"https://{self.sliding_sync_domain}"}
        return Caddy(
            server_name=self.server_name if self.here("synapse") else None,
            matrix_domain=self.matrix_domain if self.here("synapse") else None,
            identity_domain=self.identity_domain if self.here("sydent") else None,
            sliding_sync_domain=self.sliding_sync_domain if self.here("sliding_sync") else None,
            turn_domain=self.turn_domain if self.here("coturn") else None,
            issuer=self._issuer(self.choices.acme, "acme_eab_hmac_key"),
            turn_issuer=self.turn_issuer,
            admin_email=self.choices.admin_email,
            max_upload_bytes=size_in_bytes(self.choices.max_upload_size),
            well_known_client=client,
            well_known_server={"m.server": f"{self.matrix_domain}:443"} if self.choices.federation else None,
            federation_port=8448 if self.choices.federation_port_8448 else None,
            # Half of them at most: the rest is for the homeserver and its database, which do most of the work.
            processors=max(1, self.machine.processors // 2),
            synapse=tuple(f"unix/{path}" for path in SYNAPSE_SOCKETS),
            sydent=("127.0.0.1:8090",),
            sliding_sync=("127.0.0.1:8009",),
        )

    @cached_property
    def turn_issuer(self) -> Issuer:
        if self.choices.turn_acme is None:
            return self._issuer(self.choices.acme, "acme_eab_hmac_key")
        return self._issuer(self.choices.turn_acme, "turn_acme_eab_hmac_key")

    @cached_property
    def coturn(self) -> Coturn:
        certificate, key = self.turn_issuer.paths(self.turn_domain)
        # Two users may both come through this relay, so it must be allowed to reach itself even at a private address.
        own = [self.choices.external_ip] if self.choices.external_ip else []
        own += [address for address in self.machine.addresses if not _only_local(address)]
        return Coturn(
            domain=self.turn_domain,
            shared_secret=self.vault.get("turn_shared_secret"),
            certificate=certificate,
            key=key,
            # Caddy writes certificate, key and then the third file; administrators write theirs in any order.
            watched=(certificate, key)
            if self.choices.tls == "files"
            else (f"{certificate.removesuffix('.crt')}.json",),
            external_ip=self.choices.external_ip,
            denied_ranges=tuple(_range(network) for network in NEVER_RELAYED_TO),
            allowed_ranges=tuple(_range(network) for network in dict.fromkeys([*own, *self.choices.private_networks])),
        )

    @property
    def _python(self) -> str:
        return PYTHON_OF_DEBIAN.get(self.machine.release, "3.13")

    def _issuer(self, acme: Acme, secret: str) -> Issuer:
        choices = self.choices
        if choices.tls == "files" and choices.tls_files:
            return Issuer("files", certificate=choices.tls_files.certificate, key=choices.tls_files.key)
        if choices.tls == "internal":
            return Issuer("internal")
        hmac_key: Secret | None = None
        if acme.eab_key_id:
            hmac_key = Secret(acme.eab_hmac_key) if acme.eab_hmac_key else self.vault.get(secret)
        return Issuer(
            "acme",
            directory=acme.directory,
            email=acme.email or choices.admin_email or "",
            eab_key_id=acme.eab_key_id or "",
            eab_hmac_key=hmac_key,
            trusted_root=acme.trusted_root or "",
        )

    @property
    def database_server(self) -> str | None:
        """Name of the machine that has the databases of this one's roles, if it is another one."""
        server = self.roles["postgres"][0] if self.exists("postgres") else self.name
        return server if server != self.name and any(self.here(role) for role in DATABASES) else None

    @property
    def private_authorities(self) -> list[str]:
        """The machine's trust store, where certificates may come from an authority that the world does not know."""
        choices = self.choices
        private = (
            choices.tls != "acme" or choices.acme.trusted_root or (choices.turn_acme and choices.turn_acme.trusted_root)
        )
        return [BUNDLE] if private else []

    @property
    def brought_files(self) -> dict[str, Any] | None:
        """What the administrator has to put on this machine, as `operations.certificates.Unusable` takes it."""
        issuers = [self.caddy.issuer] if self.here("caddy") else []
        issuers += [self.turn_issuer] if self.here("coturn") else []
        authorities = list(dict.fromkeys(issuer.trusted_root for issuer in issuers if issuer.trusted_root))
        own = [issuer for issuer in issuers if issuer.kind == "files"]
        if not authorities and not own:
            return None
        return {
            "certificate": own[0].certificate if own else "",
            "key": own[0].key if own else "",
            "authorities": authorities,
            "domains": list(dict.fromkeys(each.domain for each in self.served)),
            "caddy": self.here("caddy"),
        }

    @cached_property
    def served(self) -> list[Served]:
        """The names that this machine serves over TLS."""
        served: list[Served] = []
        if self.here("caddy"):
            caddy = self.caddy
            # Caddy does not watch files of the administrator's; it is reloaded when they are others than it shows.
            file, unit = caddy.issuer.certificate or "-", caddy.reloader if caddy.issuer.certificate else "-"
            served += [Served(name, 443, file, unit) for name in caddy.domains]
        if self.here("coturn"):
            # It goes on without TLS when it cannot read its certificate: only a handshake proves that it has it.
            served.append(Served(self.coturn.domain, 5349, self.coturn.certificate, self.coturn.reloader))
        if self.here("caddy") and self.here("synapse") and self.caddy.federation_port:
            served += [Served(name, self.caddy.federation_port) for name in (self.server_name, self.matrix_domain)]
        return served

    @property
    def virtualenvs(self) -> list[Virtualenv]:
        """Those that this machine's roles need."""
        rooms = [getattr(self, role) for role in ("synapse", "sydent") if self.here(role)]
        return [room.virtualenv for room in rooms]

    # What can be wrong with a whole deployment.

    def mistakes(self) -> list[str]:
        """What is wrong with the inventory and the choices taken together, a line each."""
        return [*self._inventory_mistakes(), *self._domain_mistakes(), *self._choice_mistakes()]

    def _inventory_mistakes(self) -> Iterable[str]:
        where = f"inventories/{self.deployment}.py"
        if not any(self.roles.values()):
            yield f"{where}: no machine has a role; the roles are {', '.join(NEEDS)}"
        for role, machines in self.roles.items():
            if len(machines) > 1 and role not in SEVERAL:
                yield f"{where}: {role} has {len(machines)} machines ({', '.join(machines)}), but one is allowed"
            for needed in NEEDS[role]:
                if not machines:
                    continue
                if not self.roles[needed]:
                    yield f"{where}: {role} needs the role {needed}, which no machine has"
                elif needed != "postgres" and self.roles[needed][0] != machines[0]:
                    yield f"{where}: {role} and {needed} must be on the same machine"
            if machines and role == "coturn" and self.choices.tls != "files" and machines[0] not in self.roles["caddy"]:
                yield f'{where}: {machines[0]} has coturn, so it needs the role caddy for the certificate (or tls = "files")'

    def _domain_mistakes(self) -> Iterable[str]:
        used: dict[str, str] = {}
        of_role = {
            "matrix_domain": "synapse",
            "identity_domain": "sydent",
            "sliding_sync_domain": "sliding_sync",
            "turn_domain": "coturn",
        }
        for name in ("server_name", *of_role):
            domain: str = getattr(self, name)
            if name != "server_name" and not self.exists(of_role[name]):
                continue
            if domain in used:
                yield (
                    f"group_data/{self.deployment}.py: {name} and {used[domain]} are both {domain}; "
                    "each needs a name of its own"
                )
            used.setdefault(domain, name)

    def _choice_mistakes(self) -> Iterable[str]:
        where, choices = f"group_data/{self.deployment}.py", self.choices
        for name in ("server_name", "matrix_domain", "identity_domain", "sliding_sync_domain", "turn_domain"):
            domain: str = getattr(self, name)
            if re.search(r"(^|\.)example\.(com|org|net)$", domain):
                yield f"{where}: {name} is still {domain}, which belongs to nobody; set it to your own domain name"
                return
        if choices.tls == "acme" and self.exists("caddy") and not (choices.admin_email or choices.acme.email):
            yield f'{where}: admin_email is missing: the certificate authority wants an address (tls = "acme")'
        if choices.federation_port_8448 and not choices.federation:
            yield f"{where}: federation_port_8448 is True, but federation is False: there is nothing to serve on that port"
        if choices.tls == "files" and not choices.tls_files:
            yield f'{where}: tls_files is missing: tls = "files" needs {{"certificate": "/path", "key": "/path"}}'


def size_in_bytes(size: str) -> int:
    """Bytes of a size such as 50M (mebibytes)."""
    return int(size[:-1]) * {"K": 1024, "M": 1024**2, "G": 1024**3}[size[-1]]


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def _range(network: str) -> tuple[str, str]:
    """First and last address, the form in which coturn takes ranges."""
    addresses = ipaddress.ip_network(network)
    return str(addresses[0]), str(addresses[-1])


def _only_local(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip.is_loopback or ip.is_link_local


# --- as pyinfra sees it ---------------------------------------------------------------------------

# One vault for the whole run: secrets made for one machine must be the ones that another gets.
_vault = cache(Vault.open)
_settings: dict[str, Settings] = {}
_machines: dict[str, MachineState] = {}


def chosen_for(host: Host, machine: MachineState, neighbours: Mapping[str, Neighbour] | None = None) -> Settings:
    """The settings of one of the run's machines, validated. Raises SettingError for what cannot be deployed anywhere."""
    groups = {name: [member.name for member in members] for name, members in inventory.groups.items() if members}
    # pyinfra adds a group named after the inventory file, last.
    own = [name for name in groups if name not in NEEDS and name != "all"]
    if not own:
        raise SettingError("the inventory's file must have a name that is no role's, such as inventories/prod.py")
    deployment = own[-1]
    if misspelt := misspelt_roles(set(groups) - {deployment, "all"}):
        raise SettingError("\n".join(f"inventories/{deployment}.py: {line}" for line in misspelt))
    data: dict[str, Any] = host.data.dict()  # type: ignore[no-untyped-call]
    settings = Settings(
        choices_from(data, deployment), deployment, groups, host.name, machine, neighbours, data.get("ssh_hostname")
    )
    if mistakes := settings.mistakes():
        raise SettingError("\n".join(mistakes))
    return settings


def settings_of(host: Host) -> Settings:
    """The settings of one of the run's machines: validated, and the machine looked at, once per run."""
    if host.name not in _settings:
        neighbours = {other.name: _neighbour_of(host, other) for other in inventory if other is not host}
        _settings[host.name] = chosen_for(host, _machine_of(host), neighbours)
    return _settings[host.name]


def _neighbour_of(host: Host, other: Host) -> Neighbour:
    address = other.data.get("address") or other.data.get("ssh_hostname") or other.name
    # Only the database has to know from which addresses others come: else a machine is deployed without a look at others.
    client = "postgres" in host.groups and any(role in other.groups for role in DATABASES)
    # And only who uses a database has to know its port.
    server = "postgres" in other.groups and any(role in host.groups for role in DATABASES)
    return Neighbour(
        address,
        _machine_of(other).addresses if client else (),
        _postgresql_port(_machine_of(other)) if server else POSTGRESQL_PORT,
    )


def _machine_of(host: Host) -> MachineState:
    if host.name not in _machines:
        _machines[host.name] = host.get_fact(Machine)
    return _machines[host.name]


def _postgresql_version(machine: MachineState) -> str:
    """The cluster that is there is kept; a dist-upgrade brings a newer PostgreSQL but leaves the data in the old one."""
    return machine.postgresql[-1] if machine.postgresql else POSTGRESQL_OF_DEBIAN.get(machine.release, "17")


def _postgresql_port(machine: MachineState) -> int:
    """The port of our cluster; where there is none yet, the one that Debian gives to a new one: the first that is free."""
    clusters = dict(machine.clusters)
    taken = {*clusters.values(), *(each.port for each in machine.listeners if each.protocol == "tcp")}
    free = next(port for port in itertools.count(POSTGRESQL_PORT) if port not in taken)
    return clusters.get(f"{_postgresql_version(machine)}/main", POSTGRESQL_PORT if machine.postgresql else free)


def misspelt_roles(groups: Iterable[str]) -> list[str]:
    """A line for each group that looks like a role misspelt."""
    lines = []
    for group in groups:
        near = difflib.get_close_matches(group, list(NEEDS), n=1, cutoff=0.75)
        if group not in NEEDS and near:
            lines.append(f"the group {group} is no role; did you mean {near[0]}?")
    return lines
