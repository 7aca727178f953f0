"""python manage.py NAME admin ..."""

import base64
import contextlib
import difflib
import re
import selectors
import signal
import socket
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from paramiko import Channel
from passlib.hash import bcrypt

import whole_file
from compat import Refused, channel_to, connect, connection_error
from manage.accounts import Password, password_options
from manage.machines import Deployment, Machine
from manage.output import as_json, confirm, print_json, print_table, unasked
from roles import ADMIN, MONITORING
from settings.admin import CERTIFICATE, PASSWORD, TUNNEL_PORTS, USER, Choices, certificates_in, tunnel_name
from vault import Vault

# Of the password: characters, and bytes, as bcrypt sees no more. Nobody counts wrong ones.
SHORTEST, LONGEST = 12, 72
# Of the name of a certificate, which is also that of its file.
LONGEST_NAME = 40
# A quarter of a second for each guess. A browser gives the password once, and a cookie afterwards.
ROUNDS = 12


@click.group()
def admin() -> None:
    """The administrator's pages: users, rooms, media, reports and tokens in a browser; with `monitoring` its overview.

    Nobody reaches them from the internet, unless `admin_networks` says so: `open` leads to them over SSH.
    """


@admin.command()
@password_options
@click.pass_obj
def password(deployment: Deployment, password_stdin: bool, generate: bool) -> None:
    """Set the password of the pages. It asks for it twice. Only a hash of it is kept, in the vault; a deploy writes it."""
    machine = deployment.machine("admin")
    given = Password(password_stdin, generate)
    vault = Vault.open(deployment.vault_path)
    chosen = given.get("the administrator's pages")
    if len(chosen) < SHORTEST or len(chosen.encode()) > LONGEST:
        raise Refused(f"the password must have at least {SHORTEST} characters, and at most {LONGEST} bytes")
    vault.set(PASSWORD, bcrypt.using(rounds=ROUNDS, truncate_error=True).hash(chosen))
    vault.save()
    if generate:
        click.echo(f"Password: {chosen}")
    click.echo(
        f"The password is set, for the name {USER}, and ends all sessions at {machine.name} with the next deploy. "
        f"Now run: pyinfra {deployment.command_name} deploy.py"
    )


@admin.group()
def certificate() -> None:
    """Certificates of browsers, of which each needs one beside the password with `admin_certificates = True`.

    They are for the names of the pages. Through the tunnel of `open` none is asked for.
    """


@dataclass(frozen=True)
class Certificate:
    """One that a browser may have. expired: Caddy refuses it."""

    name: str
    expires: datetime
    expired: bool
    fingerprint: str

    @classmethod
    def of(cls, name: str, value: str) -> "Certificate":
        found = x509.load_der_x509_certificate(base64.b64decode(value))
        expires = found.not_valid_after_utc
        return cls(name, expires, expires <= datetime.now(UTC), found.fingerprint(hashes.SHA256()).hex())


@certificate.command()
@click.argument("name")
@click.option(
    "--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="For how many days it is valid."
)
@password_options
@click.pass_obj
def create(deployment: Deployment, name: str, days: int, password_stdin: bool, generate: bool) -> None:
    """Make a certificate for a browser, such as anna-laptop.

    NAME.p12 in this directory has it, with its key, encrypted with a password that is asked for twice. The key is nowhere else:
    the vault has the certificate only. A deploy tells it to the machine.
    """
    if len(name) > LONGEST_NAME or not re.fullmatch("[a-z][a-z0-9-]*", name):
        raise Refused(
            f"the name must have lower-case letters, digits and hyphens, a letter first, {LONGEST_NAME} at most: {name!r} has not"
        )
    machine = deployment.machine("admin")
    given = Password(password_stdin, generate)
    vault, file = Vault.open(deployment.vault_path), deployment.called_in / f"{name}.p12"
    if name in certificates_in(vault):
        raise Refused(f"there is a certificate {name}: revoke it before, or choose another name")
    if file.exists():
        raise Refused(f"{file} is there already, and would be lost: move it away")
    chosen = given.get(file.name)
    if len(chosen) < SHORTEST or not chosen.isascii():
        raise Refused(
            f"the password must have at least {SHORTEST} characters, and only letters, digits and signs of ASCII"
        )
    made, packed = _certificate(name, machine.settings.server_name, days, chosen)
    try:
        whole_file.replace(file, packed)
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror}") from None
    try:
        vault.set(f"{CERTIFICATE}{name}", base64.b64encode(made.public_bytes(Encoding.DER)).decode())
        vault.save()
    except BaseException:
        file.unlink()
        raise
    if generate:
        click.echo(f"Password: {chosen}")
    click.echo(
        f"{file.name} has the certificate, valid until {made.not_valid_after_utc:%Y-%m-%d}: import it into the browser, and "
        f"delete the file. Now run: pyinfra {deployment.command_name} deploy.py"
    )
    if not machine.settings.section(Choices).admin_certificates:
        click.echo("It is not asked for before admin_certificates = True is set.")


def _certificate(name: str, server_name: str, days: int, password: str) -> tuple[x509.Certificate, bytes]:
    """A certificate, and the file with its key for a browser.

    Each is its own authority, so there is no key that makes others. All have one subject: Caddy shows it to whoever connects, so
    that browsers know which they should offer.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    # At most 64 characters are allowed.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Administrator of {server_name}"[:64])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # The machine's clock may be behind.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    shown = f"{server_name} ({name})".encode()
    return made, pkcs12.serialize_key_and_certificates(
        shown, key, made, None, BestAvailableEncryption(password.encode())
    )


@certificate.command(name="list")
@as_json
@click.pass_obj
def list_certificates(deployment: Deployment, as_json: bool) -> None:
    """Show which certificates browsers may have."""
    deployment.machine("admin")
    vault = Vault.open(deployment.vault_path)
    found = [Certificate.of(name, value) for name, value in certificates_in(vault).items()]
    if as_json:
        print_json(found)
    elif found:
        rows = [
            (each.name, "expired" if each.expired else "valid", each.expires, each.fingerprint[:16]) for each in found
        ]
        print_table(("NAME", "", "UNTIL (UTC)", "SHA-256"), rows)
    else:
        click.echo(f"There is none: python manage.py {deployment.name} admin certificate create NAME")


@certificate.command()
@click.argument("name")
@unasked
@click.pass_obj
def revoke(deployment: Deployment, name: str, yes: bool) -> None:
    """Take a certificate back: from the next deploy it lets nobody in."""
    deployment.machine("admin")
    vault = Vault.open(deployment.vault_path)
    found = certificates_in(vault)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        raise Refused(f"there is no certificate {name!r}" + (f": did you mean {near[0]}?" if near else ""))
    confirm(f"The certificate {name} lets nobody in any more from the next deploy. Go on?", yes)
    vault.remove(f"{CERTIFICATE}{name}")
    vault.save()
    click.echo(f"{name} is revoked. Now run: pyinfra {deployment.command_name} deploy.py")


@admin.command(name="open")
@click.option("--browser", is_flag=True, help="Open them in this computer's browser, too.")
@click.pass_obj
def open_pages(deployment: Deployment, browser: bool) -> None:
    """Make a tunnel to the pages over SSH, as long as this runs, and print their address."""
    machine = deployment.machine("admin")
    if not Vault.open(deployment.vault_path).has(PASSWORD):
        raise Refused(f"the pages have no password yet: python manage.py {deployment.name} admin password, then deploy")
    connect(machine.host)
    try:
        _open(machine, browser)
    finally:
        machine.close()


def _open(machine: Machine, browser: bool) -> None:
    name, overview = tunnel_name(machine.settings), ""
    if machine.settings.here("monitoring"):
        overview = tunnel_name(machine.settings, MONITORING)
    found = channel_to(machine.host, ADMIN.port)
    if found is None:
        click.echo(f"This is the machine: http://{name}:{ADMIN.port}/")
        if overview:
            click.echo(f"The overview: http://{overview}:{ADMIN.port}/")
        return
    found.close()
    with _listening() as listener:
        url = f"http://{name}:{listener.getsockname()[1]}/"
        click.echo(f"{url}  (name: {USER})")
        if overview:
            click.echo(f"{url.replace(name, overview)}  (the overview of the monitoring, behind the same password)")
        click.echo("Open it in Firefox or Chromium on this computer. Ctrl-C closes the tunnel.")
        if browser:
            click.launch(url)
        _serve(listener, machine)
        click.echo("The tunnel is closed.")


def _listening() -> socket.socket:
    for port in TUNNEL_PORTS:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    raise Refused(f"the ports {TUNNEL_PORTS[0]} to {TUNNEL_PORTS[-1]} of this computer are all in use")


def _serve(listener: socket.socket, machine: Machine) -> None:
    """Pass on connections until somebody stops it. Raises Refused if the one to the machine ends."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # An exception would be one of gevent's loop, which shows it.
        signal.signal(number, lambda *_: stopped.set())
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while not stopped.is_set():
            if ended := connection_error(machine.host):
                raise Refused(f"{machine.name} does not answer: {ended}")
            if selector.select(timeout=0.5):
                accepted, _ = listener.accept()
                try:
                    channel = channel_to(machine.host, ADMIN.port)
                except Refused as problem:
                    accepted.close()
                    click.echo(f"manage: {problem}", err=True)
                    continue
                assert channel
                for copy in (_to_machine, _from_machine):
                    threading.Thread(target=copy, args=(accepted, channel), daemon=True).start()


def _to_machine(local: socket.socket, channel: Channel) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := local.recv(1 << 15):
            channel.sendall(data)
    with contextlib.suppress(OSError, EOFError):
        channel.shutdown_write()


def _from_machine(local: socket.socket, channel: Channel) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := channel.recv(1 << 15):
            local.sendall(data)
    with contextlib.suppress(OSError, EOFError):
        local.shutdown(socket.SHUT_RDWR)
    local.close()
    channel.close()
