"""python manage.py NAME admin ..."""

import contextlib
import selectors
import signal
import socket
import threading

import click
from paramiko import Channel
from passlib.hash import bcrypt

from compat import Refused, channel_to, connect, connection_error
from manage.accounts import Password, password_options
from manage.machines import Deployment, Machine
from roles import ADMIN, MONITORING
from settings.admin import PASSWORD, TUNNEL_PORTS, USER, tunnel_name
from vault import Vault

# Of the password: characters, and bytes, as bcrypt sees no more. Nobody counts wrong ones.
SHORTEST, LONGEST = 12, 72
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
