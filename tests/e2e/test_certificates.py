"""Certificates: from two real ACME servers, renewed during calls, not yet available, or files of the administrator's own.

The tests share one machine, and each starts from the state that the one before it left.
"""

import contextlib
import dataclasses
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pytest
from cryptography import x509

from roles import CADDY, RELAY_TLS_PORT, SYDENT
from tests.built import built
from tests.deployment import EVERYTHING, Deployment, Run
from tests.e2e.test_confinement import (
    ANYBODY,
    Machine,
    Service,
    assert_reaches_no_other,
    main_pid,
    may_end,
    neighbours,
)
from tests.protocols.turn import Credentials, relay
from tests.testbed import Host, Testbed
from tests.testbed.acme import API, HMAC_KEY, KEY_ID, Acme, Authority
from vault import Vault

pytestmark = pytest.mark.role("caddy")

ROLES = ("caddy", "coturn", "sydent")
# Where the administrator puts the authority of a private ACME server, and their own certificates.
TRUSTED_ROOT, OWN = "/etc/ssl/private-acme.pem", "/etc/ssl/own"
STORE = "/var/lib/caddy/.local/share/caddy/certificates"
# A domain without DNS records at first.
LATE = "cert-late.test"
# The port on which turnutils_peer sends back what it receives.
ECHO = 3480

# Of certificates that have expired.
SIGNER = Authority("Somebody")

T = TypeVar("T")


@dataclass
class Site:
    """The machine, its deployment, and the two ACME servers: `open` for the web names, `bound` (with EAB) for the relay."""

    host: Host
    acme: Acme
    deployment: Deployment
    web: str
    turn: str

    def choose(self, **settings: Any) -> None:
        """Write group data for ACME, changed by these settings."""
        by_acme = {
            "server_name": self.host.domain,
            "admin_email": f"admin@{self.host.domain}",
            "private_networks": [str(self.host.bed.network.subnet)],
            "tls": "acme",
            "acme": {"directory": self.acme.directory("open"), "trusted_root": TRUSTED_ROOT},
            "turn_acme": {
                # Host names are case-insensitive, but Caddy's store is on a case-sensitive file system.
                "directory": self.acme.directory("bound").replace("acme.test", "ACME.test"),
                "eab_key_id": KEY_ID,
                "email": f"turn@{self.host.domain}",
                "trusted_root": TRUSTED_ROOT,
            },
        }
        chosen = by_acme | settings
        self.web = chosen.get("identity_domain", f"identity.{self.host.domain}")
        self.turn = chosen.get("turn_domain", f"turn.{self.host.domain}")
        self.deployment.choose(**chosen)

    def context(self, root: str) -> ssl.SSLContext:
        """For a client that trusts only this root."""
        context = ssl.create_default_context(cadata=root)
        # pebble's certificates lack extensions that VERIFY_X509_STRICT requires.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    def presented(self, name: str, port: int, root: str) -> x509.Certificate:
        """The certificate that the machine presents. Raises SSLError unless it is valid for the name and issued by the root."""
        with (
            socket.create_connection((self.host.address, port), timeout=10) as connection,
            self.context(root).wrap_socket(connection, server_hostname=name) as tls,
        ):
            encoded = tls.getpeercert(binary_form=True)
        assert encoded
        return x509.load_der_x509_certificate(encoded)

    def credentials(self) -> Credentials:
        secret = Vault.open(self.deployment.vault).get("turn_shared_secret").reveal()
        return Credentials.signed(f"{int(time.time()) + 3600}:@somebody:{self.host.domain}", secret)

    def assert_services_work(self) -> None:
        """Services that need no certificate answer."""
        self.host.run(SYDENT.units[0].health)
        with relay(self.host.address, "udp", self.credentials()) as client:
            assert client.allocate()[0] == self.host.address

    @contextlib.contextmanager
    def unreachable(self, server: str) -> Iterator[None]:
        """Make an ACME server unreachable for the machine. (If it were stopped, it would lose its accounts.)"""
        rule = f"rule %s ipproto tcp dport {API[server]} unreachable"
        self.host.run(f"ip {rule % 'add'} && ip -6 {rule % 'add'}")
        try:
            yield
        finally:
            self.host.run(f"ip {rule % 'del'} && ip -6 {rule % 'del'}")

    def set_names(self, *more: str) -> None:
        """Give the machine these DNS names beside its own, and no others."""
        own = (self.host.domain, f"*.{self.host.domain}", *more)
        with self.host.bed._locked():
            self.host._save(dataclasses.replace(self.host.record, names=own))
            self.host.bed._serve_names()


@pytest.fixture(scope="module")
def acme(testbed: Testbed) -> Iterator[Acme]:
    host = testbed.up("acme")
    acme = Acme(host, Authority("Private ACME server"))
    acme.start()
    # The other side of the calls.
    host.run(
        "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends coturn "
        "&& systemctl stop coturn && systemd-run --quiet --unit=echo turnutils_peer",
        timeout=300,
    )
    yield acme
    host.down()


@pytest.fixture(scope="module")
def site(testbed: Testbed, acme: Acme, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    host = testbed.up("cert13", layers=built(testbed, "trixie"))
    host.run(f"cat >{TRUSTED_ROOT}", stdin=acme.authority.pem)
    deployment = Deployment(tmp_path_factory.mktemp("cert13"), [host], {}, {role: [host.name] for role in ROLES})
    vault = Vault.open(deployment.vault)
    vault.set("turn_acme_eab_hmac_key", HMAC_KEY)
    vault.save()
    site = Site(host, acme, deployment, "", "")
    site.choose()
    yield site
    host.down()


def retry(attempt: Callable[[], T], seconds: float) -> T:
    """Repeat an attempt until it raises nothing, for at most so many seconds; returns its result."""
    end = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (OSError, AssertionError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def certificate_errors(run: Run) -> list[str]:
    """The lines of the run's output about missing certificates."""
    return [line for line in run.output.splitlines() if "no valid certificate" in line]


# --- ACME -----------------------------------------------------------------------------------------


def test_each_name_has_a_certificate_from_its_own_acme_server(site: Site) -> None:
    site.deployment.run("-y")
    site.presented(site.web, 443, site.acme.root("open"))
    site.presented(site.turn, 443, site.acme.root("bound"))
    site.presented(site.turn, RELAY_TLS_PORT, site.acme.root("bound"))
    with pytest.raises(ssl.SSLCertVerificationError):
        site.presented(site.turn, RELAY_TLS_PORT, site.acme.root("open"))
    site.assert_services_work()
    # Browsers remember that these names have HTTPS only.
    head = site.host.run(f"curl -skI --resolve {site.web}:443:127.0.0.1 https://{site.web}/_matrix/identity/v2").stdout
    assert "\nstrict-transport-security: max-age=31536000\n" in head.replace("\r", "")
    assert site.deployment.run("-y").changed == []


def test_the_eab_key_is_not_readable_by_other_users(site: Site) -> None:
    assert HMAC_KEY in site.host.run("cat /etc/caddy/Caddyfile").stdout
    assert site.host.run(f"runuser -u nobody -- grep -rlsF {HMAC_KEY} /etc /run || true").stdout == ""
    assert HMAC_KEY not in site.host.journal(lines=100000)


def renew(site: Site) -> None:
    """Have the relay's certificate issued again: Caddy requests a new one because the file is missing."""
    site.host.run(f"rm {STORE}/*/{site.turn}/* && systemctl reload caddy")


def test_a_deleted_certificate_is_obtained_again(site: Site) -> None:
    """Caddy still has it in memory, but coturn needs the file."""
    site.host.run(f"rm -r {STORE}/*/{site.turn}")
    site.deployment.run("-y")
    site.host.run(f"ls {STORE}/*/{site.turn}/{site.turn}.crt")
    site.presented(site.turn, RELAY_TLS_PORT, site.acme.root("bound"))
    assert site.deployment.run("-y").changed == []


def test_a_certificate_that_caddy_could_not_save_is_requested_again_by_the_next_run(site: Site) -> None:
    """Caddy itself tries again only after a minute. The run does not wait for that."""
    folder = site.host.run(f"ls -d {STORE}/*/{site.web}").stdout.strip()
    # A directory of root's. Caddy could remove it if it were empty, hence the file.
    site.host.run(f"rm -r {folder}; install -d -m 755 {folder}; touch {folder}/in-the-way; systemctl restart caddy")
    [line] = certificate_errors(site.deployment.run("-y", check=False))
    assert f"{site.web}, port 443: no valid certificate (Caddy cannot save it: open {folder}/" in line, line
    assert line.endswith("permission denied). See journalctl -u caddy")
    site.host.run("systemctl restart caddy")
    retry(lambda: _assert_logged(site, f"[{site.web}] Obtain: saving assets"), 10)
    site.host.run(f"rm -r {folder}")
    begin = time.monotonic()
    assert site.deployment.run("-y").changed == ["Check every certificate"]
    assert time.monotonic() - begin < 20
    site.presented(site.web, 443, site.acme.root("open"))


def _assert_logged(site: Site, words: str) -> None:
    """Caddy has logged these words since its last start."""
    since = "$(systemctl show caddy -p ExecMainStartTimestamp --value)"
    assert words in site.host.run(f'journalctl -u caddy -o cat --no-pager --since="{since}"').stdout


def call(site: Site, context: ssl.SSLContext, end: threading.Event) -> int:
    """A call over TLS until the event; returns how many packets came back. (Not by Debian's client: over TLS it loses packets
    whenever the relay's processor is busy for longer than the time between two packets, also without a renewal.)"""
    peer, packets = (site.acme.host.address, ECHO), 0
    with relay(site.host.address, "tls", site.credentials(), context=context, name=site.turn) as client:
        client.allocate()
        client.permit(peer[0])
        while not end.wait(0.03):
            packet = secrets.token_bytes(200)
            client.send(peer, packet)
            assert client.receive() == (peer, packet)
            packets += 1
    return packets


def test_renewals_do_not_interrupt_calls(site: Site) -> None:
    """Twenty renewals in a row are each presented within 15 s, and calls of half a minute lose no packets."""
    credentials, root, during = site.credentials(), site.acme.root("bound"), 0
    started = site.host.run("systemctl show coturn -p ExecMainStartTimestampMonotonic").stdout
    calls = [
        subprocess.Popen(
            site.acme.host.ssh(
                f"turnutils_uclient {options} -c -n 1000 -z 30 -u '{credentials.username}' -w '{credentials.password}' "
                f"-e {site.acme.host.address} {site.turn} || exit 1"
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for options in ("", "-t")
    ]
    end = threading.Event()
    with ThreadPoolExecutor() as pool:
        encrypted = pool.submit(call, site, site.context(root), end)
        try:
            serials = {site.presented(site.turn, RELAY_TLS_PORT, root).serial_number}
            for _ in range(20):
                renew(site)

                def new_serial() -> int:
                    serial = site.presented(site.turn, RELAY_TLS_PORT, root).serial_number
                    assert serial not in serials, "coturn presents the old certificate"
                    return serial

                serials.add(retry(new_serial, 15))
                during += all(each.poll() is None for each in calls)
        finally:
            end.set()
        # On a busy machine the calls of fixed length may end before the last renewal.
        assert during >= 10, f"only {during} renewals happened during the calls"
        assert encrypted.result() > 100
    for each in calls:
        output, _ = each.communicate(timeout=60)
        assert each.returncode == 0, output[-2000:]
        assert "Total lost packets 0 (0.000000%), total send dropped 0" in output, output[-2000:]
        assert "tot_send_msgs=1000, tot_recv_msgs=1000" in output, output[-2000:]
    assert site.host.run("systemctl show coturn -p ExecMainStartTimestampMonotonic").stdout == started
    assert site.deployment.run("-y").changed == []


def test_certificates_that_cannot_be_obtained_yet_are_reported_and_obtained_later(site: Site) -> None:
    """One name has no DNS record, the ACME server of the other is down. All else works, and no second run is needed."""
    site.choose(turn_domain=f"turn.{LATE}", identity_domain=f"id.{site.host.domain}")
    with site.unreachable("open"):
        run = site.deployment.run("-y", check=False)
        assert run.status == 1
        [web, turn] = certificate_errors(run)
        assert f"{site.web}, port 443: no valid certificate" in web and "network is unreachable" in web
        assert f"{site.turn}, port 5349: no valid certificate" in turn and "no such host" in turn
        assert "Traceback" not in run.output
        site.assert_services_work()
    site.set_names(f"turn.{LATE}")
    # Caddy tries again a minute after the first attempt.
    retry(lambda: site.presented(site.turn, RELAY_TLS_PORT, site.acme.root("bound")), 60)
    retry(lambda: site.presented(site.web, 443, site.acme.root("open")), 10)


def test_a_run_does_not_wait_for_caddys_next_attempt(site: Site) -> None:
    """Caddy waits a minute or longer after a failure; the administrator removes the cause and runs the deployment again."""
    site.choose(turn_domain=f"again.{LATE}", identity_domain=f"id.{site.host.domain}")
    [line] = certificate_errors(site.deployment.run("-y", check=False))
    assert f"again.{LATE}" in line and "no such host" in line
    site.set_names(f"again.{LATE}")
    begin = time.monotonic()
    assert site.deployment.run("-y").changed == ["Check every certificate"]
    assert time.monotonic() - begin < 20
    site.presented(site.turn, RELAY_TLS_PORT, site.acme.root("bound"))


def expired(site: Site) -> list[str]:
    """The names of the two that present a certificate which has expired."""
    names = []
    for name, port, server in ((site.web, 443, "open"), (site.turn, RELAY_TLS_PORT, "bound")):
        with contextlib.suppress(ssl.SSLCertVerificationError, OSError):
            site.presented(name, port, site.acme.root(server))
            continue
        try:
            site.presented(name, port, SIGNER.pem)
        except ssl.SSLCertVerificationError as error:
            if "certificate has expired" in str(error):
                names.append(name)
        except OSError:
            continue
    return names


def test_expired_certificates_are_replaced_once_their_issuers_answer_again(site: Site) -> None:
    """On the web and at the relay. Nobody does anything."""
    site.choose()
    site.deployment.run("-y")
    with site.unreachable("open"), site.unreachable("bound"):
        for name in (site.web, site.turn):
            # As Caddy replaces them, with their owner and mode; the last file says that they are complete.
            for kind, content in zip(("crt", "key", "json"), (*SIGNER.issue(name, days=-1), None), strict=True):
                site.host.run(
                    f"old=$(ls {STORE}/*/{name}/{name}.{kind}); cp -p $old $old.new; {'cat >$old.new;' if content else ''} "
                    "mv $old.new $old",
                    stdin=content,
                )
        site.host.run("systemctl restart caddy")
        for name in (site.web, site.turn):
            retry(partial(_assert_logged, site, f'"will retry","error":"[{name}] Renew: '), 30)
        retry(lambda: _assert_equal(expired(site), [site.web, site.turn]), 20)
    # Caddy tries again a minute after the first attempt.
    begin = time.monotonic()
    retry(lambda: site.presented(site.web, 443, site.acme.root("open")), 90)
    retry(lambda: site.presented(site.turn, RELAY_TLS_PORT, site.acme.root("bound")), 30)
    print(f"{time.monotonic() - begin:.1f} s after the issuers answer")
    assert site.deployment.run("-y").changed == []


def _assert_equal(found: object, wanted: object) -> None:
    assert found == wanted


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> Authority:
    """The administrator's own authority."""
    return Authority("Our own authority")


def put(site: Site, certificate: str, key: str, mode: str = "640") -> None:
    site.host.run(f"install -d {OWN}; rm -f {OWN}/*")
    for name, content in (("chain.pem", certificate), ("key.pem", key)):
        site.host.run(f"cat >{OWN}/{name}; chgrp caddy {OWN}/{name}; chmod {mode} {OWN}/{name}", stdin=content)


def choose_files(site: Site) -> None:
    site.choose(tls="files", tls_files={"certificate": f"{OWN}/chain.pem", "key": f"{OWN}/key.pem"})


@contextlib.contextmanager
def refused(site: Site, *words: str) -> Iterator[None]:
    """After the block, a run prints one line with these words and changes nothing."""
    yield
    stamp = "/run/before"
    site.host.run(f"touch {stamp}; sleep 0.02")
    run = site.deployment.run("-y", check=False)
    assert run.status == 1 and run.changed == []
    [line] = run.refusal.splitlines()
    assert "Traceback" not in run.output
    for word in (site.host.name, *words):
        assert word in line
    assert site.host.run(f"find /etc /usr/local -newercm {stamp}").stdout == ""


def test_unusable_files_are_refused(site: Site, authority: Authority) -> None:
    choose_files(site)
    names = site.web, site.turn
    with refused(site, f"{OWN}/chain.pem is not for {site.turn}, but for {site.web}"):
        put(site, *authority.issue(site.web))
    with refused(site, f"{OWN}/chain.pem expired on "):
        put(site, *authority.issue(*names, days=-1))
    with refused(site, f"{OWN}/key.pem is not the key of {OWN}/chain.pem"):
        put(site, authority.issue(*names)[0], authority.issue(*names)[1])
    with refused(site, f"{OWN}/key.pem is not a private key in PEM form"):
        put(site, authority.issue(*names)[0], authority.issue(*names)[0])
    with refused(site, f"{OWN}/key.pem is not readable by Caddy", f"chgrp caddy {OWN}/key.pem"):
        put(site, *authority.issue(*names))
        site.host.run(f"chmod 600 {OWN}/key.pem")
    with refused(site, f"{OWN}/chain.pem is not on the machine"):
        site.host.run(f"chmod 640 {OWN}/key.pem; rm {OWN}/chain.pem")
    site.choose()
    with refused(site, f"{TRUSTED_ROOT} is not on the machine"):
        site.host.run(f"mv {TRUSTED_ROOT} {TRUSTED_ROOT}.away")
    site.host.run(f"mv {TRUSTED_ROOT}.away {TRUSTED_ROOT}")


def test_the_administrators_files_are_used_and_reloaded_when_replaced(site: Site, authority: Authority) -> None:
    choose_files(site)
    put(site, *authority.issue(site.web, f"*.{site.host.domain}"))
    site.deployment.run("-y")
    first = site.presented(site.web, 443, authority.pem)
    assert site.presented(site.turn, RELAY_TLS_PORT, authority.pem) == first
    site.assert_services_work()
    assert site.deployment.run("-y").changed == []

    # Replaced one after the other: until then the key is not that of the certificate.
    certificate, key = authority.issue(site.web, site.turn)
    site.host.run(f"cat >{OWN}/chain.pem", stdin=certificate)
    time.sleep(2)
    assert (
        site.presented(site.turn, RELAY_TLS_PORT, authority.pem)
        == site.presented(site.web, 443, authority.pem)
        == first
    )
    site.host.run(f"cat >{OWN}/key.pem", stdin=key)
    second = x509.load_pem_x509_certificate(certificate.encode())
    for name, port in ((site.web, 443), (site.turn, RELAY_TLS_PORT)):

        def assert_second(name: str = name, port: int = port) -> None:
            assert site.presented(name, port, authority.pem) == second

        retry(assert_second, 15)
    assert site.deployment.run("-y").changed == []


def test_what_presents_them_reaches_nothing_else(site: Site) -> None:
    of_caddy = (*Service.of(CADDY, CADDY.units[0]).may, *may_end("caddy.service"))
    with neighbours(site.host) as pids:
        pids |= {unit: main_pid(site.host, unit) for unit in (f"{name}.service" for name in ROLES)}
        machine = Machine(site.host, pids, [EVERYTHING[name] for name in ROLES])
        assert_reaches_no_other(machine, Service("coturn-certificate.service", ANYBODY))
        assert_reaches_no_other(machine, Service("caddy-certificate.service", of_caddy))
