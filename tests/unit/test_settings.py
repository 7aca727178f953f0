"""Choices: what is allowed, the messages about what is not, and what is derived from them."""

import re
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from operations.machine import MachineState
from operations.preflight import _unreached_by_calls
from roles import CADDY, COTURN, ROLES, SLIDING_SYNC, SYDENT, SYNAPSE, Port, Role, Unit
from settings import Choices, SettingError, Settings, choices_from, mistakes
from settings.caddy import Caddy
from settings.coturn import Coturn
from settings.deployment import Common
from settings.element import Element
from settings.fields import size_in_bytes
from settings.mas import Mas
from settings.networks import BLOCKED_NETWORKS
from settings.postgres import Postgres
from settings.rules import misspelt_roles
from settings.sydent import Sydent
from settings.synapse import Choices as Homeserver
from settings.synapse import Synapse
from tests.deployment import EVERYTHING, WITH_MAS
from vault import VaultError

ROOT = Path(__file__).parent.parent.parent
DEFAULTS = {
    name: value
    for name, value in runpy.run_path(str(ROOT / "group_data" / "all.py")).items()
    if name in Choices.model_fields
}
MACHINE = MachineState("root", True, "debian", "13", "amd64", 4096, 40960, ("192.0.2.1",))
ALL = tuple(ROLES)
CAPTCHA = {"service": "hcaptcha", "site_key": "10000000-ffff-ffff"}


def chosen(**choices: Any) -> Common:
    given = {"server_name": "x.test", "tls": "internal", "backup_target": "/mnt/backup", **choices}
    return choices_from({**DEFAULTS, **given}, "prod")


def settings(
    tmp_path: Path,
    roles: Mapping[str, Sequence[str]] | None = None,
    machine: MachineState = MACHINE,
    **choices: Any,
) -> Settings:
    given = roles if roles is not None else {role: ["one"] for role in ALL}
    return Settings(chosen(**choices), "prod", given, "one", machine, inventories=tmp_path)


def refusal(**choices: Any) -> str:
    with pytest.raises(SettingError) as caught:
        chosen(**choices)
    return str(caught.value)


def test_group_data_lists_every_setting() -> None:
    assert set(DEFAULTS) == set(Choices.model_fields)


def test_only_the_server_name_is_required() -> None:
    choices = choices_from({**DEFAULTS, "server_name": "x.test"}, "prod")
    assert isinstance(choices, Homeserver)
    assert (choices.tls, choices.registration, choices.federation) == ("acme", "closed", True)


# --- what is not allowed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "x",
            "X.test",
            "x.test.",
            ".x.test",
            "-x.test",
            "x_y.test",
            "x..test",
            "x .test",
            "x.test\n",
            "bücher.test",
        ),
        *("10.0.0.1", "[::1]", "x.test:8448", "https://x.test", f"{'a' * 64}.test", 5),
    ],
)
def test_server_name_must_be_a_domain(name: object) -> None:
    line = refusal(server_name=name)
    assert line.startswith(f"group_data/prod.py: server_name = {name!r} is not allowed: it must be a domain name")
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("müller.test", "this one is written xn--mller-kva.test"),
        ("Müller.test", "this one is written xn--mller-kva.test"),
        ("mu\u0308ller.test", "this one is written xn--mller-kva.test"),
        ("matrix.faß.test", "this one is written matrix.xn--fa-hia.test"),
        ("xn--9s9hnf.test", "IDNA 2008 does not allow this one: Codepoint U+1F9E1"),
        ("xn--mller-kva.xn--9s9hnf.test", "IDNA 2008 does not allow this one: Codepoint U+1F9E1"),
        ("\U0001f4a9.test", "IDNA 2008 does not allow this one: Codepoint U+1F4A9"),
        ("xn--x.test", "IDNA 2008 does not allow this one: Invalid A-label"),
        ("xn--.test", None),
        ("ab--cd.test", "IDNA 2008 does not allow this one: Label has disallowed hyphens"),
        ("x.test.", None),
        ("x.123", None),
        ("x.0x7f", None),
        ("mu_ller.test", None),
    ],
)
def test_names_that_no_program_connects_to_are_refused(name: str, why: str | None) -> None:
    for setting in ("server_name", "matrix_domain", "turn_domain", "smtp_host", "address"):
        line = refusal(**{setting: name})
        assert line.startswith(f"group_data/prod.py: {setting} = {name!r} is not allowed: it must be ")
        assert line.partition("; ")[2].startswith(why or "") and bool(why) == ("; " in line)
        assert len(line.splitlines()) == 1


@pytest.mark.parametrize("setting", ["admin_email", "mail_from"])
def test_domain_of_a_mail_address_must_be_encoded(setting: str) -> None:
    assert "an e-mail address" in (line := refusal(**{setting: "me@müller.test"})) and "xn--mller-kva.test" in line
    assert "IDNA 2008 does not allow this one" in refusal(**{setting: "me@xn--9s9hnf.test"})
    for address in ("me@xn--mller-kva.test", "Me+tag@Mail.X.test"):
        assert getattr(chosen(**{setting: address}), setting) == address


@pytest.mark.parametrize(
    "name", ["x.test", "a-b.x.test", "1.x.test", "xn--bcher-kva.test", "xn--mgbh0fb.xn--fa-hia.test"]
)
def test_domains_that_are_allowed(name: str) -> None:
    assert chosen(server_name=name).server_name == name


def test_missing_server_name_is_reported_once() -> None:
    with pytest.raises(SettingError) as caught:
        choices_from(DEFAULTS, "prod")
    assert str(caught.value).startswith("group_data/prod.py: server_name is missing: set it to a domain name")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("misspelt", "right"),
    [("sever_name", "server_name"), ("federaton", "federation"), ("max_upload", "max_upload_size"), ("TLS", None)],
)
def test_misspelt_setting_gets_a_suggestion(misspelt: str, right: str | None) -> None:
    line = refusal(**{misspelt: "x"})
    assert f"there is no setting {misspelt}" in line
    assert (f"did you mean {right}?" if right else "group_data/all.py lists them all") in line


def test_misspelt_key_of_a_dictionary_gets_a_suggestion() -> None:
    line = refusal(acme={"directory": "https://ca.x.test", "eab_keyid": "x"})
    assert "there is no acme['eab_keyid']; did you mean eab_key_id?" in line


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("federation", "yes", "True or False"),
        ("federation", 1, "True or False"),
        ("tls", "letsencrypt", '"acme", "internal" or "files"'),
        ("registration", True, '"closed", "token" or "open"'),
        ("captcha", "hcaptcha", 'None or a dictionary such as {"service": "hcaptcha"'),
        (
            "captcha",
            {"service": "recaptcha_v3", "site_key": "k"},
            '"recaptcha_v2", "cloudflare_turnstile" or "hcaptcha"',
        ),
        ("captcha", {"service": "hcaptcha"}, "captcha['site_key'] is missing: set it to the site key"),
        ("captcha", {"service": "hcaptcha", "site_key": "a key"}, "the site key that the service has given you"),
        ("max_upload_size", "50MB", '"50M" or "1G"'),
        ("max_upload_size", 52428800, '"50M" or "1G"'),
        ("max_upload_size", "0M", '"50M" or "1G"'),
        ("remote_media_days", 0, "None or a number of days from 1 to 3650"),
        ("local_media_days", "90d", "None or a number of days from 1 to 3650"),
        ("message_days", True, "None or a number of days from 1 to 3650"),
        ("forgotten_room_days", 3651, "None or a number of days from 1 to 3650"),
        ("forget_left_rooms", "yes", "True or False"),
        ("reports_to", ["anna"], 'a list of accounts, such as ["@anna:example.org"]'),
        ("block_non_admin_invites", 1, "True or False"),
        ("rc_invites_per_user", 5, 'None or a limit such as {"per_second": 0.3, "burst_count": 10}'),
        ("rc_invites_per_user", {"per_second": 0, "burst_count": 5}, "a number above 0, such as 0.3"),
        ("rc_invites_per_room", {"per_second": 0.3}, "a number from 1 to 10000"),
        ("antispam_url", "localhost:8083", "None or a URL"),
        ("antispam_questions", ["user_may_sing"], "a list of some of user_may_invite, user_may_join_room"),
        ("antispam_questions", [], "a list of some of user_may_invite"),
        ("stale_device_days", 29, "None or a number of days from 30 to 3650"),
        ("statistics_percent", 0, "a number of percent from 1 to 50"),
        ("statistics_percent", 2.5, "a number of percent from 1 to 50"),
        ("journal_max_size", "1GB", 'None or a size such as "1G"'),
        ("journal_max_days", -1, "None or a number of days from 1 to 3650"),
        ("smtp_port", "587", "a port from 1 to 65535"),
        ("smtp_port", 0, "a port from 1 to 65535"),
        ("smtp_port", True, "a port from 1 to 65535"),
        ("smtp_tls", "ssl", '"starttls", "tls" or "none"'),
        ("admin_email", "admin", "an e-mail address"),
        ("mail_from", "a@x.test, b@x.test", "an e-mail address"),
        ("mail_from", "a@x.test\nBcc: b@x.test", "an e-mail address"),
        ("external_ip", "2001:db8::1", "an IPv4 address"),
        ("external_ip", "198.51.100", "an IPv4 address"),
        ("external_ip", "127.0.0.1", "an IPv4 address"),
        ("external_ipv6", "198.51.100.7", "an IPv6 address"),
        ("external_ipv6", "fe80::1", "an IPv6 address"),
        ("acme", {}, "acme['directory'] is missing"),
        ("acme", {"directory": "http://ca.x.test"}, "the https URL"),
        ("acme", "letsencrypt", "a dictionary such as"),
        ("tls_files", {"certificate": "a.pem", "key": "/etc/a.key"}, "the absolute path"),
        ("sliding_sync_releases", "http://x.test", "an https URL"),
        ("livekit_releases", "http://x.test", "an https URL"),
        ("rtc_full_access_servers", ["*"], "a list of server names"),
        ("sliding_sync_sha256", {"amd64": "abc"}, "64 hexadecimal digits"),
        (
            "sso",
            [{"id": "a b", "issuer": "https://x.test", "client_id": "m", "name": "X"}],
            "lower-case letters, digits",
        ),
        ("sso", [{"id": "a", "issuer": "http://x.test", "client_id": "m", "name": "X"}], "the https URL"),
        ("private_networks", ["10.0.0.1/8"], '["10.1.0.0/16"]'),
        ("private_networks", "10.0.0.0/8", '["10.1.0.0/16"]'),
        ("private_networks", ["0.0.0.0/0"], '["10.1.0.0/16"]'),
        ("private_networks", ["127.0.0.0/8"], '["10.1.0.0/16"]'),
        ("private_networks", ["::/0"], '["10.1.0.0/16"]'),
    ],
)
def test_wrong_value_is_reported_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    line = refusal(**{name: value})
    assert line.startswith("group_data/prod.py: ") and name in line and allowed in line
    assert len(line.splitlines()) == 1


def test_all_mistakes_are_reported_at_once() -> None:
    lines = refusal(server_name="X", federation="no", colour="red").splitlines()
    assert len(lines) == 3


def test_key_in_group_data_is_not_repeated() -> None:
    line = refusal(acme={"directory": "https://ca.x.test", "eab_hmac_key": "line\nbreak"})
    assert "break" not in line and "*****" in line


def test_data_of_pyinfra_is_no_mistake() -> None:
    chosen(ssh_user="admin", ssh_port=2222, _sudo=True)


# --- inventory and choices together ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({}, "no machine has a role"),
        ({"synapse": ["one"]}, "synapse needs the role postgres"),
        ({"postgres": ["one"], "sliding_sync": ["one"]}, "sliding_sync needs the role synapse"),
        ({"coturn": ["one"]}, "needs the role caddy for the certificate"),
        ({"coturn": ["one"], "caddy": ["two"]}, "needs the role caddy for the certificate"),
        ({"postgres": ["one", "two"]}, "postgres has 2 machines (one, two), but one is allowed"),
    ],
)
def test_roles_that_cannot_be_deployed_together(tmp_path: Path, roles: dict[str, list[str]], message: str) -> None:
    [line] = mistakes(settings(tmp_path, roles))
    assert line.startswith("inventories/prod.py: ") and message in line


def test_several_machines_may_have_caddy(tmp_path: Path) -> None:
    assert mistakes(settings(tmp_path, {"caddy": ["one", "two"], "coturn": ["two"]})) == []


def test_files_need_no_caddy_for_the_relay(tmp_path: Path) -> None:
    files = {"certificate": "/etc/a.pem", "key": "/etc/a.key"}
    assert mistakes(settings(tmp_path, {"coturn": ["one"]}, tls="files", tls_files=files)) == []


@pytest.mark.parametrize(
    ("groups", "message"), [(["coturm"], "did you mean coturn?"), (["sliding-sync"], "sliding_sync")]
)
def test_misspelt_role_is_noticed(groups: list[str], message: str) -> None:
    [line] = misspelt_roles(groups)
    assert message in line


def test_groups_of_the_administrators_own_are_no_mistake() -> None:
    assert misspelt_roles(["berlin", "webservers", "synapse"]) == []


def test_domains_must_differ_only_among_roles_that_exist(tmp_path: Path) -> None:
    both: dict[str, Any] = {"matrix_domain": "all.x.test", "identity_domain": "all.x.test"}
    [line] = mistakes(settings(tmp_path, **both))
    assert "identity_domain and matrix_domain are both all.x.test" in line
    homeserver = {"postgres": ["one"], "synapse": ["one"], "caddy": ["one"]}
    assert mistakes(settings(tmp_path, homeserver, **both)) == []


def test_a_further_name_of_a_role_is_below_its_own_and_counts_while_it_is_used(tmp_path: Path) -> None:
    roles = {name: ["one"] for name in ("postgres", "synapse", "caddy", "element")}
    for stickers, lines in ((True, 1), (False, 0)):
        found = mistakes(settings(tmp_path, roles, stickers=stickers, stickers_domain="matrix.x.test"))
        assert len(found) == lines and all("stickers_domain and matrix_domain are both" in line for line in found)
    names = settings(tmp_path, roles, stickers=True, chat_domain="talk.y.test").view(Element).web_names
    assert names == ("talk.y.test", "stickers.talk.y.test")


@pytest.mark.parametrize("name", ["example.org", "example.com", "my.example.net"])
def test_sample_domains_are_refused(tmp_path: Path, name: str) -> None:
    assert "belongs to nobody" in mistakes(settings(tmp_path, server_name=name))[0]


def test_port_for_federation_without_federation_is_refused(tmp_path: Path) -> None:
    [line] = mistakes(settings(tmp_path, federation=False, federation_port_8448=True))
    assert "federation_port_8448 is True, but federation is False" in line
    assert mistakes(settings(tmp_path, federation_port_8448=True)) == []


def test_open_registration_is_protected_or_asked_for_twice(tmp_path: Path) -> None:
    [line] = mistakes(settings(tmp_path, registration="open"))
    assert 'registration = "open" without smtp_host and captcha' in line
    assert "set smtp_host or captcha, " in line and "registration_unprotected = True" in line
    for more in ({"smtp_host": "mail.x.test"}, {"captcha": CAPTCHA}, {"registration_unprotected": True}):
        assert mistakes(settings(tmp_path, registration="open", **more)) == []


@pytest.mark.parametrize("registration", ["closed", "token"])
def test_a_captcha_nobody_is_asked_for_is_refused(tmp_path: Path, registration: str) -> None:
    [line] = mistakes(settings(tmp_path, registration=registration, captcha=CAPTCHA))
    assert f'captcha is set, but registration is "{registration}"' in line
    assert 'set registration = "open", or captcha = None' in line


def test_synapse_alone_knows_one_captcha(tmp_path: Path) -> None:
    roles = {role: ["one"] for role in ("postgres", "synapse")}
    [line] = mistakes(settings(tmp_path, roles, registration="open", captcha=CAPTCHA))
    assert "captcha['service'] = \"hcaptcha\" needs the role mas" in line and '"recaptcha_v2" only' in line
    google = {**CAPTCHA, "service": "recaptcha_v2"}
    assert mistakes(settings(tmp_path, roles, registration="open", captcha=google)) == []


@pytest.mark.parametrize("mas", [True, False])
def test_a_captcha_without_its_secret_is_refused(tmp_path: Path, mas: bool) -> None:
    roles = {role: ["one"] for role in ("postgres", "synapse", *(["mas"] if mas else []))}
    made = settings(tmp_path, roles, registration="open", captcha={**CAPTCHA, "service": "recaptcha_v2"})
    with pytest.raises(VaultError, match=r"captcha_secret_key is not set in .*vault.py set"):
        made.view(Mas if mas else Synapse)
    # Where MAS asks for it, Synapse does not need it.
    if mas:
        assert made.view(Synapse).captcha is None


def test_a_secret_among_the_settings_is_sent_to_the_vault() -> None:
    line = refusal(captcha={**CAPTCHA, "secret_key": "hunter2"})
    assert "there is no captcha['secret_key']: secrets belong into the vault" in line and "hunter2" not in line


@pytest.mark.parametrize("roles", [EVERYTHING, WITH_MAS], ids=["EVERYTHING", "WITH_MAS"])
def test_what_tests_and_measurements_deploy_fits_together(tmp_path: Path, roles: Mapping[str, Role]) -> None:
    assert mistakes(settings(tmp_path, {role: ["one"] for role in roles}, backup_target=None)) == []


def test_providers_to_sign_in_with_need_mas_and_a_name_each(tmp_path: Path) -> None:
    provider = {"id": "example", "issuer": "https://id.x.test", "client_id": "matrix", "name": "Example"}
    with_mas = {role: ["one"] for role in ("postgres", "synapse", "mas")}
    without = {role: ["one"] for role in ("postgres", "synapse")}
    [line] = mistakes(settings(tmp_path, without, sso=[provider]))
    assert "sso has providers" in line and "the role mas" in line
    [line] = mistakes(settings(tmp_path, with_mas, sso=[provider, provider]))
    assert "sso has two providers with the id example" in line
    assert mistakes(settings(tmp_path, with_mas, sso=[provider, {**provider, "id": "other"}])) == []


def test_reports_are_for_accounts_of_this_homeserver(tmp_path: Path) -> None:
    [line] = mistakes(settings(tmp_path, reports_to=["@anna:x.test", "@b:y.test"]))
    assert (
        "reports_to has @b:y.test, who is not of this homeserver: reports are for accounts such as @anna:x.test" in line
    )


def test_reports_are_for_administrators_unless_others_are_named(tmp_path: Path) -> None:
    """Who administers the homeserver, Synapse knows only if it has the accounts. If nobody is told, there is no file."""
    roles = {role: ["one"] for role in ("postgres", "synapse")}
    assert settings(tmp_path, roles).view(Synapse).moderators == '"admins"\n'
    assert settings(tmp_path, roles, reports_to=[]).view(Synapse).moderators == ""
    assert settings(tmp_path, {**roles, "mas": ["one"], "caddy": ["one"]}).view(Synapse).moderators == ""
    [line] = mistakes(settings(tmp_path, roles, reports_to=["@b:y.test"]))
    assert "reports_to has @b:y.test" in line


def test_alerts_are_for_accounts_of_this_homeserver_and_of_the_monitoring(tmp_path: Path) -> None:
    here = {role: ["one"] for role in ("postgres", "synapse", "monitoring")}
    [line] = mistakes(settings(tmp_path, here, alerts_to=["@anna:x.test", "@b:y.test"]))
    assert "alerts_to has @b:y.test, who is not of this homeserver: alerts are for accounts" in line
    del here["monitoring"]
    [line] = mistakes(settings(tmp_path, here, alerts_to=["@anna:x.test"]))
    assert "alerts_to names who is told what the role monitoring finds, and no machine has it" in line


def test_housekeeping_that_would_do_nothing_is_refused(tmp_path: Path) -> None:
    [line] = mistakes(settings(tmp_path, forget_left_rooms=True, forgotten_room_days=None))
    assert "forget_left_rooms is True, but forgotten_room_days is None" in line
    assert mistakes(settings(tmp_path, forget_left_rooms=True)) == []
    [line] = mistakes(settings(tmp_path, stale_device_days=400))
    assert "stale_device_days = 400 is for accounts in Synapse, and the role mas has them" in line
    without_mas = {role: ["one"] for role in ALL if role != "mas"}
    assert mistakes(settings(tmp_path, without_mas, stale_device_days=400)) == []


def test_nothing_that_people_may_miss_is_removed_unless_chosen() -> None:
    choices = chosen()
    assert isinstance(choices, Homeserver)
    removed = ("remote_media_days", "local_media_days", "message_days", "stale_device_days")
    assert [getattr(choices, name) for name in removed] == [None] * 4 and not choices.forget_left_rooms


def test_certificate_authority_needs_a_contact(tmp_path: Path) -> None:
    assert "admin_email is missing" in mistakes(settings(tmp_path, tls="acme"))[0]
    assert mistakes(settings(tmp_path, tls="acme", admin_email="a@x.test")) == []
    acme = {"directory": "https://ca.x.test", "email": "a@x.test"}
    assert mistakes(settings(tmp_path, tls="acme", acme=acme)) == []


# --- what is derived ------------------------------------------------------------------------------


def test_domains_follow_the_server_name(tmp_path: Path) -> None:
    made = settings(tmp_path)
    domains = tuple(made.domain(role) for role in (SYNAPSE, SYDENT, SLIDING_SYNC, COTURN))
    assert domains == ("matrix.x.test", "identity.x.test", "sliding.x.test", "turn.x.test")
    assert settings(tmp_path, matrix_domain="chat.y.test").view(Synapse).public_url == "https://chat.y.test/"


# Name -> the roles that connect to it.
NAMES = {
    "x.test": ["Sydent", "LiveKit"],
    "matrix.x.test": ["Sydent", "LiveKit"],
    "identity.x.test": ["Synapse"],
    "push.x.test": ["Synapse"],
    "rtc.x.test": ["LiveKit"],
}


def at(name: str, *addresses: str) -> MachineState:
    """A machine on which one of the names has these addresses, and the others public ones."""
    names = {**dict.fromkeys(NAMES, ("8.8.8.8", "2606:4700::1", "64:ff9b::808:808")), name: addresses}
    return MachineState("root", True, "debian", "13", "amd64", 4096, 40960, ("8.8.8.8",), names=names)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("addresses", "advice"),
    [
        (["8.8.8.8"], None),
        (["127.0.1.1"], None),
        (["127.0.0.1"], "take the name out of that line of /etc/hosts"),
        (["::1"], "take the name out of that line of /etc/hosts"),
        (["fe80::1"], "take the name out of that line of /etc/hosts"),
        (["10.1.2.3"], 'add "10.1.2.3/32" to private_networks'),
        (["fd00::1", "8.8.8.8"], 'add "fd00::1/128" to private_networks'),
        (["172.16.0.1"], None),
        ([], "has no address on this machine"),
    ],
)
def test_names_that_a_service_cannot_reach_are_reported(
    tmp_path: Path, name: str, addresses: list[str], advice: str | None
) -> None:
    """Sydent and Synapse take no part of an answer that has a private address, a packet filter keeps lk-jwt-service from it."""
    made = settings(tmp_path, machine=at(name, *addresses), private_networks=["172.16.0.0/16"])
    if advice is None:
        assert made.unreachable == []
    else:
        [line] = made.unreachable
        assert name in line and advice in line and all(role in line for role in NAMES[name])
    alone = {"postgres": ["one"], "synapse": ["one"]}
    assert settings(tmp_path, alone, machine=at(name, *addresses)).unreachable == []


def test_an_address_that_several_names_have_is_one_line(tmp_path: Path) -> None:
    names = dict.fromkeys(NAMES, ("10.1.2.3", "fd00::1"))
    lines = settings(tmp_path, machine=replace(at("x.test"), names=names)).unreachable
    assert [re.findall(r'add "(.+)" to', line) for line in lines] == [["10.1.2.3/32"], ["fd00::1/128"]]
    assert all(word in line for line in lines for word in (*NAMES, "Synapse, Sydent and LiveKit refuse:"))


def test_the_installers_line_in_hosts_allows_no_more_than_it_has_to(tmp_path: Path) -> None:
    """An address of the loopback is allowed only where one of our own names has it."""
    assert settings(tmp_path).view(Sydent).ip_allowlist == ()
    made = settings(tmp_path, machine=at("x.test", "127.0.1.1"))
    assert (made.view(Sydent).ip_allowlist, made.view(Synapse).private_networks) == (("127.0.1.1/32",), ())
    made = settings(tmp_path, machine=at("identity.x.test", "127.0.1.1"))
    assert (made.view(Sydent).ip_allowlist, made.view(Synapse).private_networks) == ((), ("127.0.1.1/32",))


@pytest.mark.parametrize(("size", "count"), [("1K", 1024), ("50M", 50 * 1024**2), ("2G", 2 * 1024**3)])
def test_sizes(size: str, count: int) -> None:
    assert size_in_bytes(size) == count


def test_local_ports_belong_to_their_services(tmp_path: Path) -> None:
    """Whoever has no Caddy has a reverse proxy of another user."""
    roles = {"sydent": ["one"], "synapse": ["one"], "postgres": ["one"], "caddy": ["one"]}
    with_caddy, without = settings(tmp_path, roles), settings(tmp_path, {**roles, "caddy": ["two"]})
    assert {port.number: (port.owner, port.callers) for port in with_caddy.local_ports} == {
        8008: ("matrix-synapse", None),
        8090: ("sydent", ("caddy",)),
    }
    assert all(port.callers is None for port in without.local_ports)
    assert "nftables" in with_caddy.packages
    assert settings(tmp_path, {"postgres": ["one"]}).local_ports == []


def test_public_ports_belong_to_their_services(tmp_path: Path) -> None:
    """Those that any user may bind, where their service is: with those of databases that other machines use, and not of calls."""
    relay = [(protocol, port, "root") for port in (3478, 5349) for protocol in ("tcp", "udp")]
    cases: list[tuple[dict[str, list[str]], dict[str, Any], list[tuple[str, int, str]]]] = [
        ({"synapse": ["one"], "postgres": ["one"], "caddy": ["one"], "coturn": ["one"]}, {}, relay),
        ({"caddy": ["one"], "coturn": ["one"]}, {}, relay),
        ({"synapse": ["two"], "postgres": ["one"]}, {}, [("tcp", 5432, "postgres")]),
        ({"synapse": ["two"], "postgres": ["one"], "caddy": ["two"]}, {}, [("tcp", 5432, "postgres")]),
        (
            {"synapse": ["one"], "postgres": ["one"], "caddy": ["one"]},
            {"federation_port_8448": True},
            [("tcp", 8448, "caddy")],
        ),
        ({"synapse": ["two"], "postgres": ["two"], "caddy": ["one"]}, {}, []),
    ]
    for roles, more, expected in cases:
        here = settings(tmp_path, roles, MACHINE, **more)
        assert [(port.protocol, port.number, port.owner) for port in here.public_ports] == expected
        assert ("nftables" in here.packages) == bool(here.local_ports or expected)


def test_a_role_may_have_several_units_and_local_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = Unit("more.service", user="more", health="true", exposure=1.5, masked=True)
    several = replace(
        CADDY,
        units=(*CADDY.units, more),
        listens=tuple(Port("tcp", number, "machine", "more.service") for number in (7880, 8082)),
    )
    monkeypatch.setitem(cast(dict[str, Role], ROLES), "caddy", several)
    here = settings(tmp_path, {"sydent": ["one"], "caddy": ["one"]})
    assert {port.number: (port.owner, port.callers) for port in here.local_ports} == {
        7880: ("more", None),
        8082: ("more", None),
        8090: ("sydent", ("caddy", "more")),
    }
    assert several.local_ports == (7880, 8082)
    assert [account.name for account in here.accounts] == ["caddy", "more", "sydent"]
    assert here.masked == ["caddy.service", "more.service"]


def machine_with(*, outgoing: Sequence[str] = ("10.9.9.9",), **interfaces: Sequence[str]) -> MachineState:
    """outgoing: the addresses with which it connects to the world, of its first interface."""
    first, lasting = next(iter(interfaces)), [(name, each) for name, some in interfaces.items() for each in some]
    return MachineState(
        release="13",
        addresses=tuple(address for _, address in lasting),
        interfaces=tuple(lasting),
        outgoing=tuple((first, address) for address in outgoing),
    )


@pytest.mark.parametrize(
    ("machine", "chosen", "relayed"),
    [
        # Bridges of containers, whatever family has a way to the world.
        (
            machine_with(
                eth0=["198.51.100.7", "2001:db8::7"], docker0=["172.17.0.1", "fd17::1"], outgoing=["198.51.100.7"]
            ),
            {},
            [("198.51.100.7", None), ("2001:db8::7", None)],
        ),
        (
            machine_with(eth0=["198.51.100.7"], docker0=["fd17::1"], outgoing=["198.51.100.7"]),
            {},
            [("198.51.100.7", None)],
        ),
        # IPv6 only.
        (
            machine_with(eth0=["2001:db8::7"], docker0=["172.17.0.1"], outgoing=["2001:db8::7"]),
            {},
            [("2001:db8::7", None)],
        ),
        # A temporary address is no lasting one; a private one is taken only without a public one.
        (machine_with(eth0=["2001:db8::7"], outgoing=["2001:db8::ffff"]), {}, [("2001:db8::7", None)]),
        (machine_with(eth0=["fd00::7", "2001:db8::7"], outgoing=["fd00::7"]), {}, [("2001:db8::7", None)]),
        (machine_with(eth0=["10.9.9.9"], lo=["198.51.100.7"], docker0=["172.17.0.1"]), {}, [("198.51.100.7", None)]),
        (machine_with(eth0=["10.9.9.8", "10.9.9.9"], docker0=["172.17.0.1"]), {}, [("10.9.9.9", None)]),
        (machine_with(eth0=["10.9.9.8"], lo=["10.9.9.9"]), {}, [("10.9.9.9", None)]),
        # Behind NAT, in one family or both; and one of the machine's own addresses.
        (
            machine_with(eth0=["10.9.9.8", "10.9.9.9", "2001:db8::7"], outgoing=["10.9.9.9", "2001:db8::7"]),
            {"external_ip": "203.0.113.9"},
            [("10.9.9.9", "203.0.113.9"), ("2001:db8::7", None)],
        ),
        (
            machine_with(eth0=["10.9.9.9", "fd00::7"], outgoing=["10.9.9.9", "fd00::7"]),
            {"external_ip": "203.0.113.9", "external_ipv6": "2001:db8::9"},
            [("10.9.9.9", "203.0.113.9"), ("fd00::7", "2001:db8::9")],
        ),
        (machine_with(eth0=["10.9.9.9"], eth1=["10.8.8.8"]), {"external_ip": "10.8.8.8"}, [("10.8.8.8", None)]),
        (
            MachineState(release="13", addresses=("10.9.9.9",), interfaces=(("lo", "198.51.100.7"),)),
            {"external_ip": "198.51.100.7"},
            [("198.51.100.7", None)],
        ),
    ],
)
def test_relay_uses_the_public_addresses(
    tmp_path: Path, machine: MachineState, chosen: dict[str, Any], relayed: list[tuple[str, str | None]]
) -> None:
    assert list(settings(tmp_path, machine=machine, **chosen).view(Coturn).relayed) == relayed


@pytest.mark.parametrize(
    ("machine", "chosen", "message"),
    [
        (
            machine_with(eth0=["10.9.9.9"]),
            {"external_ipv6": "2001:db8::9"},
            "external_ipv6 is set, but the machine has no IPv6",
        ),
        (
            machine_with(eth0=["2001:db8::7"], outgoing=["2001:db8::7"]),
            {"external_ip": "203.0.113.9"},
            "external_ip is set",
        ),
        (MachineState(release="13", addresses=("127.0.0.2", "fe80::1")), {}, "has no address but local ones"),
        (machine_with(eth0=["10.9.9.9"]), {"external_ip": "203.0.113.9"}, None),
    ],
)
def test_relay_needs_an_address_of_each_family_that_is_set(
    tmp_path: Path, machine: MachineState, chosen: dict[str, Any], message: str | None
) -> None:
    lines = _unreached_by_calls(settings(tmp_path, machine=machine, **chosen))
    assert [message in line for line in lines if message] == ([True] if message else []) and len(lines) == bool(message)


def test_relays_name_is_no_longer_than_coturn_takes(tmp_path: Path) -> None:
    """coturn cuts a longer realm, and then no client can use the relay."""
    name = ".".join(["a" * 61, "b" * 58, "x.test"])
    assert len(name) == 127
    roles = {"coturn": ["one"], "caddy": ["one"]}
    assert mistakes(settings(tmp_path, roles, turn_domain=name)) == []
    [line] = mistakes(settings(tmp_path, roles, turn_domain=f"a{name}"))
    assert "turn_domain" in line and "at most 127" in line
    assert mistakes(settings(tmp_path, {"caddy": ["one"]}, turn_domain=f"a{name}")) == []


def test_relay_reaches_itself_but_no_private_network(tmp_path: Path) -> None:
    """When both users of a call use this relay, it sends to its own address, which may be private."""
    machine = machine_with(eth0=["10.9.9.9", "10.9.9.10"], docker0=["172.17.0.1"])
    coturn = settings(tmp_path, machine=machine, external_ip="198.51.100.7").view(Coturn)
    assert [first for first, _ in coturn.allowed_ranges] == ["198.51.100.7", "10.9.9.9"]
    denied = {first for first, _ in coturn.denied_ranges}
    assert {"10.0.0.0", "127.0.0.0", "169.254.0.0", "192.168.0.0", "fc00::", "fe80::"} <= denied
    assert len(coturn.denied_ranges) == len(BLOCKED_NETWORKS)


@pytest.mark.parametrize(("processors", "used"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (64, 32)])
def test_caddy_leaves_half_of_the_processors(tmp_path: Path, processors: int, used: int) -> None:
    """And uses one if there is only one, or if their number is unknown."""
    machine = MachineState(processors=processors, release="13", architecture="amd64")
    assert settings(tmp_path, machine=machine).view(Caddy).processors == used


def test_memory_of_the_database_follows_the_machine(tmp_path: Path) -> None:
    small = settings(tmp_path, machine=MachineState(memory=1000, release="13")).view(Postgres)
    large = settings(tmp_path, machine=MachineState(memory=1 << 20, release="13")).view(Postgres)
    assert 32 <= small.shared_buffers <= 1000 // 4 < large.shared_buffers <= (1 << 20) // 4
    assert small.work_mem >= 4


def test_existing_cluster_is_kept(tmp_path: Path) -> None:
    """After an upgrade from Debian 12 the data is still in PostgreSQL 15."""
    assert settings(tmp_path, machine=MachineState(release="13", postgresql=("15",))).view(Postgres).version == "15"
    assert settings(tmp_path, machine=MachineState(release="13")).view(Postgres).version == "17"
    assert settings(tmp_path, machine=MachineState(release="12")).view(Postgres).version == "15"


def test_password_that_sydent_cannot_send_is_refused(tmp_path: Path) -> None:
    made = settings(tmp_path, smtp_host="mail.x.test", smtp_username="mailer")
    made.vault.set("smtp_password", "pässword")
    with pytest.raises(SettingError, match="must be ASCII") as caught:
        _ = made.view(Sydent)
    assert "pässword" not in str(caught.value)
    alone = {"postgres": ["one"], "synapse": ["one"]}
    without = settings(tmp_path, alone, smtp_host="mail.x.test", smtp_username="mailer")
    assert without.mail.password is not None and without.mail.password.reveal() == "pässword"


def test_secrets_are_asked_for_only_where_they_are_used(tmp_path: Path) -> None:
    """A missing secret that is not used must not stop a deployment."""
    made = settings(tmp_path)
    _ = made.view(Synapse), made.view(Sydent), made.view(Caddy)
    assert not made.vault.has("smtp_password")
    assert not made.vault.has("acme_eab_hmac_key")


def test_ranges_are_written_the_same_by_every_python(tmp_path: Path) -> None:
    """Since 3.13 Python writes IPv4-mapped addresses with dots: a deploy from another computer would restart the relay."""
    ranges = settings(tmp_path).view(Coturn).denied_ranges
    assert ("::ffff:0:0", "::ffff:ffff:ffff") in ranges
    assert not any("." in address and ":" in address for pair in ranges for address in pair)


@pytest.mark.parametrize("sso", [[{"id": "Wrong!", "client_secret": "s3cret"}], {"client_secret": "s3cret"}])
def test_a_secret_in_the_wrong_place_is_not_shown(sso: Any) -> None:
    with pytest.raises(SettingError) as refused:
        chosen(sso=sso)
    assert "sso" in str(refused.value) and "s3cret" not in str(refused.value)
