"""From outside: the names in DNS, a certificate at each name and port, federation, a relay for calls, outgoing mail.

Unlike in the other modules, this computer connects, at the addresses in DNS: so firewalls and routers are tested as well.
"""

import datetime
import json
import shlex
import ssl
from collections.abc import Mapping, Sequence

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from testinfra.host import Host

from operations.validity import certificate_problem
from roles import COTURN, MEDIA_TCP_PORT, MEDIA_UDP_PORT, RELAY_PORT, RELAY_TLS_PORT
from settings import Settings
from settings.coturn import Choices as Relay
from settings.rtc import Rtc
from settings.synapse import Choices as Homeserver
from tests.host.machines import Machine
from tests.host.outside import (
    NoRoute,
    address_of,
    addresses_of,
    check_route,
    connection_problem,
    handshake,
    http_problem,
    is_refused_over_udp,
    is_same_machine,
    issued_credentials,
    trusted_by,
)
from tests.host.report import Note
from tests.host.services import DEPLOY, ask
from tests.protocols.federation_tester import check, problems
from tests.protocols.turn import RefusedError, relay

# A Python program that prints what a mail server answers to the machine, up to where a password would be needed.
GREET = """
import json, smtplib, ssl, sys
host, port, tls = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context, found = ssl.create_default_context(), {}
try:
    if tls == "tls":
        server = smtplib.SMTP_SSL(timeout=20, context=context)
        server._host = host
    else:
        server = smtplib.SMTP(timeout=20)
        server._host = host
    code, greeting = server.connect(host, port)
    found["greeting"] = f"{code} {greeting.decode(errors='replace')}"
    server.ehlo()
    if tls == "starttls":
        found["starttls"] = server.has_extn("starttls")
        if found["starttls"]:
            server.starttls(context=context)
            server.ehlo()
    found["auth"] = server.has_extn("auth")
    server.quit()
except Exception as error:
    found["problem"] = getattr(error, "strerror", None) or str(error) or type(error).__name__
print(json.dumps(found))
"""


def test_names_resolve_to_this_machine(machine: Machine, host: Host, settings: Settings, note: Note) -> None:
    chosen = settings.section(Relay)
    own = [*machine.state.addresses, *filter(None, (chosen.external_ip, chosen.external_ipv6))]
    wrong, leading = [], {}
    if machine.local:
        note("from outside", "checked from the machine itself (@local): firewalls in front of it are not noticed")
    for served in {each.domain: each for each in settings.served}.values():
        name, found = served.domain, addresses_of(host, served.domain)
        if not found:
            wrong.append(f"{name} has no DNS record: add an A record (and AAAA, if the machine has IPv6)")
        for address in found:
            # Behind NAT the machine does not know its public address, but the same certificate is there.
            if address not in own and not is_same_machine(host, address, name, served.port):
                wrong.append(
                    f"{name} resolves to {address}, but this machine has {', '.join(own)}: correct the DNS record"
                )
        leading[name] = ", ".join(found)
    for addresses in dict.fromkeys(leading.values()):
        note("names", f"{', '.join(name for name in leading if leading[name] == addresses)}: {addresses or 'nowhere'}")
    assert not wrong, "\n".join(wrong)


def test_every_name_and_port_presents_its_certificate(host: Host, settings: Settings, note: Note) -> None:
    # (name and port, problem) -> the addresses that have it.
    wrong: dict[tuple[str, str], list[str]] = {}
    with trusted_by(host) as authorities:
        for served in settings.served:
            issuer = settings.issuer(for_relay=served.domain == settings.domain(COTURN))
            place = f"{served.domain}:{served.port}"
            for address in addresses_of(host, served.domain):
                try:
                    # This computer does not know which authorities the clients trust with `files`.
                    shown = handshake(
                        address, served.port, served.domain, None if issuer.kind == "files" else authorities
                    )
                except NoRoute:
                    note("certificates", f"{place} was not checked at {address}: this computer has no IPv6")
                    continue
                problem = shown.problem
                if shown.certificate is None:
                    problem = problem or "no certificate is presented"
                else:
                    problem = certificate_problem(shown.certificate, served.domain) or problem
                    note("certificates", f"{place}: {_described(shown.certificate)}")
                if problem:
                    wrong.setdefault((place, problem), []).append(address)
    lines = _listed(wrong)
    advice = "are the ports open in every firewall? Where a certificate is wrong, see journalctl -u caddy -u coturn"
    assert not lines, "\n".join([*lines, advice])


def _listed(wrong: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    """A line for each place and its problem, with the addresses that have it."""
    return [f"{place} at {' and '.join(addresses)}: {problem}" for (place, problem), addresses in wrong.items()]


def test_port_80_answers_at_every_address(host: Host, settings: Settings, note: Note) -> None:
    """For certificate authorities, and for people who type a name."""
    wrong: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(served.domain for served in settings.served if settings.here("caddy")):
        for address in addresses_of(host, name):
            try:
                problem = http_problem(address, name)
            except NoRoute:
                note("certificates", f"{name}:80 was not checked at {address}: this computer has no IPv6")
                continue
            if problem:
                wrong.setdefault((f"{name}:80", problem), []).append(address)
    lines = _listed(wrong)
    assert not lines, "\n".join([*lines, "is the port open in every firewall? Caddy needs it to obtain certificates"])


def _described(certificate: x509.Certificate) -> str:
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    if left < datetime.timedelta(0):
        return "expired"
    days = f"{left.days} days" if left >= datetime.timedelta(days=2) else f"{left.total_seconds() / 3600:.0f} hours"
    names = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    issuer = names[0].value if names else certificate.issuer.rfc4514_string()
    return f"{days} left, issued by {issuer if isinstance(issuer, str) else issuer.decode()}"


def test_other_homeservers_find_it_and_accept_its_keys(host: Host, settings: Settings, note: Note) -> None:
    """What the public Federation Tester checks."""
    if not (settings.here("synapse") and settings.here("caddy") and settings.section(Homeserver).federation):
        return
    with trusted_by(host) as authorities:
        findings = check(
            settings.server_name,
            lambda name: address_of(host, name),
            authorities,
            port_8448=True if settings.section(Homeserver).federation_port_8448 else None,
        )
    for finding in findings:
        note("federation", str(finding))
    assert not problems(findings), f"other homeservers will not talk with this one: {'; '.join(problems(findings))}"


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_relay_gives_an_allocation(
    machine: Machine, host: Host, settings: Settings, transport: str, note: Note
) -> None:
    """With credentials such as Synapse issues. The allocation is ended at once."""
    homeservers = machine.inventory.playing("synapse")
    if not settings.here("coturn") or not homeservers:
        return
    name, port = settings.domain(COTURN), RELAY_TLS_PORT if transport == "tls" else RELAY_PORT
    place = f"turn{'s' if transport == 'tls' else ''}:{name}:{port} by {'udp' if transport == 'udp' else 'tcp'}"
    found = addresses_of(host, name)
    assert found, f"{name} has no DNS record: no client finds the relay"
    credentials = issued_credentials(homeservers[0].host)
    # Its certificate is checked by another test.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    wrong = []
    for address in found:
        at = f"{place} at {address}"
        try:
            check_route(address)
            with relay(address, transport, credentials, context=context, name=name) as client:
                relayed, _ = client.allocate(ipv6=":" in address)
        except NoRoute:
            note("calls", f"{place} was not checked at {address}: this computer has no IPv6")
        except RefusedError as refused:
            if refused.code == 401:
                pytest.fail(f"the relay {name} refuses the credentials that Synapse hands out: {DEPLOY}")
            wrong.append(f"{at} refuses: {refused}; see journalctl -u coturn")
        except (OSError, AssertionError) as error:
            wrong.append(
                f"{at}: {error or type(error).__name__}; are the ports of the README open in every firewall on the way from "
                "this computer? See journalctl -u coturn"
            )
        else:
            if relayed not in found:
                wrong.append(
                    f"{at} allocates addresses at {relayed}, but {name} resolves to {', '.join(found)}: callers cannot reach "
                    "them; if the machine is behind NAT or has several addresses, set external_ip (external_ipv6) to its "
                    "public one"
                )
            note("calls", f"{place}: allocation at {relayed}")
    assert not wrong, "\n".join(wrong)


def test_media_reaches_livekit(host: Host, settings: Settings, note: Note) -> None:
    """At the addresses that it gives to clients. Over UDP it answers only who is in a call: there a refusal is noticed."""
    if not settings.here("rtc"):
        return
    wrong = []
    for address in (each.told for each in settings.view(Rtc).addresses):
        try:
            problem = connection_problem(address, MEDIA_TCP_PORT)
            if problem:
                wrong.append(f"{address}, {MEDIA_TCP_PORT}/tcp: {problem}")
            if is_refused_over_udp(address, MEDIA_UDP_PORT):
                wrong.append(f"{address}, {MEDIA_UDP_PORT}/udp: packets are refused")
            note("calls", f"LiveKit at {address}, {MEDIA_TCP_PORT}/tcp: {'no connection' if problem else 'reached'}")
        except NoRoute:
            note("calls", f"LiveKit was not checked at {address}: this computer has no route there")
    advice = "are the ports open in every firewall? If it is not the public address, set external_ip (external_ipv6)"
    assert not wrong, "\n".join([*wrong, advice])


def test_mail_server_accepts_this_machine(host: Host, settings: Settings, note: Note) -> None:
    """No mail is sent, and no login is made."""
    mail = settings.mail
    if not mail.host or not (settings.here("synapse") or settings.here("sydent")):
        return
    command = f"python3 -Ic {shlex.quote(GREET)} %s %s %s"
    found = json.loads(ask(host, command, mail.host, str(mail.port), mail.tls))
    place = f"the mail server {mail.host}:{mail.port}"
    assert "greeting" in found, (
        f"{place} cannot be reached from this machine: {found.get('problem')}; is smtp_host right, is smtp_tls, and does the "
        "machine's provider allow outgoing mail?"
    )
    assert found["greeting"].startswith("220 "), f"{place} refuses mail from this machine: {found['greeting']}"
    assert found.get("starttls", True), f'{place} offers no STARTTLS: set smtp_tls = "tls" (port 465) or "none"'
    assert "problem" not in found, f"{place} greets and then fails: {found['problem']}; is smtp_tls right?"
    assert not mail.username or found["auth"], f"{place} offers no login: leave smtp_username out, or check smtp_tls"
    note("mail", f"{mail.host}:{mail.port}: {found['greeting'].splitlines()[0]}")
