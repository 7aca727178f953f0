"""Every file that the tasks write, rendered for the choices that change it, and parsed as by its program.

The tasks themselves are run, with operations that only record their arguments.
"""

import json
import re
import runpy
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyinfra.local
import pytest
import yaml
from jinja2 import ChoiceLoader, DictLoader, FileSystemLoader, UndefinedError
from pyinfra.api.config import Config
from pyinfra.context import ctx_config

import settings as settings_module
from operations import (
    backups,
    certificates,
    databases,
    deployment,
    files,
    firewall,
    packages,
    preflight,
    releases,
    templating,
    units,
    users,
)
from operations import virtualenvs as virtualenvs_module
from operations.files import File
from operations.machine import MachineState
from operations.templating import MASK, TEMPLATES, caddyfile, environment_file, ini
from roles import HELPER_EXPOSURE, MONITORING_HOME, ROLES, UPDATES_RESTARTS
from settings import Choices, Settings, choices_from, mistakes
from settings.caddy import Caddy, Site
from settings.deployment import _vault
from settings.postgres import OF_DEBIAN
from settings.synapse import Synapse
from vault import SECRETS, Secret

ROOT = Path(__file__).parent.parent.parent
DEFAULTS = runpy.run_path(str(ROOT / "group_data" / "all.py"))
EVERYTHING = tuple(ROLES)
PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "
LETS_ENCRYPT = DEFAULTS["acme"]
ZEROSSL = {"directory": "https://acme.zerossl.com/v2/DV90", "eab_key_id": "key-1", "email": "turn@x.test"}
MAIL = {"smtp_host": "mail.x.test", "smtp_username": "mailer"}
S3 = ("backup_s3_access_key", "backup_s3_secret_key")
PROVIDER = {"id": "example", "issuer": "https://id.example.net/", "client_id": "matrix", "name": "Example"}


def captcha_of(service: str) -> dict[str, str]:
    return {"service": service, "site_key": "6Lc-the_key"}


# Name -> the roles, and the settings besides the server name.
SCENARIOS: dict[str, tuple[Sequence[str], Mapping[str, Any]]] = {
    "default": (EVERYTHING, {"admin_email": "admin@x.test"}),
    "internal": (EVERYTHING, {"tls": "internal", "private_networks": ["10.1.0.0/16", "fd00::/8"]}),
    "files": (EVERYTHING, {"tls": "files", "tls_files": {"certificate": "/etc/tls/a.pem", "key": "/etc/tls/a.key"}}),
    "zerossl": (EVERYTHING, {"admin_email": "admin@x.test", "turn_acme": ZEROSSL, "external_ip": "198.51.100.7"}),
    "private authority": (
        EVERYTHING,
        {"acme": {"directory": "https://ca.x.test/dir", "trusted_root": "/etc/ca.pem", "email": "a@x.test"}},
    ),
    "mail": (EVERYTHING, {"tls": "internal", "admin_email": "admin@x.test", **MAIL}),
    "backup to S3": (EVERYTHING, {"tls": "internal", "backup_target": "s3://s3.x.test/backups"}),
    # Without PostgreSQL, which Debian 12 cannot back up there.
    "backup to another machine": (
        ("caddy", "sydent", "backup"),
        {
            "tls": "internal",
            "backup_target": "sftp://backup@there.x.test/srv/backup",
            "backup_sftp_host_key": f"ssh-ed25519 {'A' * 68}",
        },
    ),
    "mail over tls": (EVERYTHING, {"tls": "internal", **MAIL, "smtp_port": 465, "smtp_tls": "tls"}),
    "mail without login": (EVERYTHING, {"tls": "internal", "smtp_host": "mail.x.test", "smtp_tls": "none"}),
    "open": (EVERYTHING, {"tls": "internal", "registration": "open", "registration_unprotected": True}),
    "open, mail": (EVERYTHING, {"tls": "internal", "registration": "open", **MAIL}),
    "open, captcha": (EVERYTHING, {"tls": "internal", "registration": "open", "captcha": captcha_of("hcaptcha")}),
    "token, no federation": (EVERYTHING, {"tls": "internal", "registration": "token", "federation": False}),
    "port 8448": (EVERYTHING, {"tls": "internal", "federation_port_8448": True}),
    "passwords in Synapse": ([role for role in EVERYTHING if role != "mas"], {"tls": "internal"}),
    "passwords in Synapse, open": (
        ("postgres", "synapse"),
        {"tls": "internal", "registration": "open", "registration_unprotected": True},
    ),
    "passwords in Synapse, open, captcha": (
        ("postgres", "caddy", "synapse", "element"),
        {"tls": "internal", "registration": "open", "captcha": captcha_of("recaptcha_v2"), "cinny": True},
    ),
    "passwords in Synapse, open, mail": (("postgres", "synapse"), {"tls": "internal", "registration": "open", **MAIL}),
    "passwords in Synapse, token": (("postgres", "synapse"), {"tls": "internal", "registration": "token"}),
    "sign in elsewhere": (EVERYTHING, {"tls": "internal", "sso": [PROVIDER]}),
    "alone, no federation": (("postgres", "caddy", "synapse"), {"tls": "internal", "federation": False}),
    "without relay": (
        ("postgres", "caddy", "synapse", "rtc"),
        {"tls": "internal", "rtc_full_access_servers": ["y.test"]},
    ),
    "housekeeping": (
        ("postgres", "caddy", "synapse"),
        {
            "tls": "internal",
            "remote_media_days": 90,
            "local_media_days": 365,
            "message_days": 400,
            "forgotten_room_days": 7,
            "forget_left_rooms": True,
            "stale_device_days": 500,
            "statistics_percent": 5,
            "journal_max_size": None,
            "journal_max_days": 14,
            "block_non_admin_invites": True,
            "rc_invites_per_user": {"per_second": 0.001, "burst_count": 3},
            "antispam_url": "http://127.0.0.1:8083/spam_check/",
        },
    ),
    "homeserver alone": (("postgres", "caddy", "synapse"), {"tls": "internal"}),
    "without caddy": (("postgres", "synapse", "sydent"), {"tls": "internal"}),
    "relay alone": (("caddy", "coturn"), {"tls": "internal"}),
    "identity server alone": (("caddy", "sydent"), {"tls": "internal"}),
}


def settings_for(scenario: str, directory: Path, release: str = "13") -> Settings:
    roles, chosen = SCENARIOS[scenario]
    known = {name: value for name, value in DEFAULTS.items() if name in Choices.model_fields}
    choices = choices_from({**known, "server_name": "x.test", "backup_target": "/mnt/backup", **chosen}, "trial")
    machine = MachineState("root", True, "debian", release, "amd64", 4096, 40960, ("192.0.2.1", "2001:db8::1"))
    given = {role: ["one"] for role in roles if release in ROLES[role].debian}
    made = Settings(choices, "trial", given, "one", machine, inventories=directory)
    assert mistakes(made) == []
    for name in (
        "smtp_password",
        "acme_eab_hmac_key",
        "turn_acme_eab_hmac_key",
        "sso_client_secret_example",
        "synapse_antispam_token",
        "captcha_secret_key",
        *S3,
    ):
        made.vault.set(name, f"{name}{PRINTABLE}")
    return made


Rendered = dict[str, tuple[str, str]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Rendered]:
    """A function that runs deploy.py for a scenario; returns each file's path, content, and content with secrets masked."""

    def render(scenario: str, release: str = "13") -> Rendered:
        made = settings_for(scenario, tmp_path, release)
        entries: list[Any] = []

        def ignore(*args: object, **kwargs: object) -> None:
            pass

        for module in (
            backups,
            certificates,
            databases,
            deployment,
            files,
            firewall,
            packages,
            releases,
            units,
            users,
            virtualenvs_module,
        ):
            for name, value in vars(module).items():
                if getattr(value, "is_idempotent", None) is not None:
                    monkeypatch.setattr(module, name, ignore)
        monkeypatch.setattr(files, "present", lambda name, entries: given(entries))
        monkeypatch.setattr(releases, "obtain", ignore)
        monkeypatch.setattr(settings_module, "settings_of", lambda host: made)
        monkeypatch.setattr(preflight, "checked_settings", lambda host: made)
        monkeypatch.setattr(pyinfra.local, "include", lambda path: runpy.run_path(str(ROOT / path)))

        def given(more: Sequence[Any]) -> None:
            entries.extend(more)

        with ctx_config.use(Config()):  # type: ignore[no-untyped-call]
            runpy.run_path(str(ROOT / "deploy.py"))
        contents = {entry.path: entry.content() for entry in entries if isinstance(entry, File)}
        return {path: (real.decode(), masked.decode()) for path, (real, masked) in contents.items()}

    return render


@pytest.mark.parametrize("release", ["12", "13"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_files_are_complete_and_readable(written: Callable[..., Rendered], scenario: str, release: str) -> None:
    rendered = written(scenario, release)
    for path, (content, masked) in rendered.items():
        # A file with nothing but a secret has no newline at its end.
        assert content.endswith("\n") or masked == MASK, path
        # Sydent and Alertmanager have templates of their own.
        own = "/sydent/templates/" in path or path.startswith((MONITORING_HOME, "/etc/matrix-alertmanager"))
        assert "{{" not in content.replace(PRINTABLE, "") or own, f"unrendered: {path}"
        if path.endswith(".yaml"):
            assert isinstance(yaml.safe_load(content), dict), path
        elif path.endswith((".service", ".path", "override.conf")):
            # No section twice: units are rendered from parts.
            sections = re.findall(r"^\[(\w+)\]$", content, re.M)
            assert sections and len(sections) == len(set(sections)), path
        elif path.endswith("sydent.conf") and "sysusers" not in path:
            parser = ConfigParser()
            parser.read_string(content)
            # Interpolation happens on reading.
            assert all(dict(parser[section]) for section in parser.sections()), path


def test_every_template_is_used(written: Callable[..., Rendered], monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()
    original = templating._ENVIRONMENT.loader.get_source  # type: ignore[union-attr]

    def recording(environment: Any, template: str) -> Any:
        used.add(template)
        return original(environment, template)

    monkeypatch.setattr(templating._ENVIRONMENT.loader, "get_source", recording)
    templating._ENVIRONMENT.cache.clear()  # type: ignore[union-attr]
    for scenario in SCENARIOS:
        written(scenario)
    kept = {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.j2") if "brand" not in path.parts}
    assert kept - used == set()


def test_missing_value_is_an_error_not_an_empty_string() -> None:
    with pytest.raises(UndefinedError):
        templating.render("postgres/matrix-metal.conf.j2", {"postgres": object()})


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["mail", "zerossl"])
def test_masked_files_hold_no_secret(written: Callable[..., Rendered], scenario: str, tmp_path: Path) -> None:
    rendered = written(scenario)
    vault = _vault(tmp_path / "trial.vault")
    values = [vault.get(name).reveal() for name in SECRETS if vault.has(name)]
    for value in values:
        # Special characters are written quoted, so only the letters at the beginning are compared.
        needle = value[:40]
        for path, (_, masked) in rendered.items():
            assert needle not in masked, path
    used = {"mail": "smtp_password", "zerossl": "turn_acme_eab_hmac_key"}[scenario]
    assert any(f"{used}0123456789" in content for content, _ in rendered.values())


def test_secret_without_reveal_is_written_masked() -> None:
    template = templating._ENVIRONMENT.from_string(
        "{{ secret }} {{ [secret] }} {{ secret | yaml if false else secret | string }}"
    )
    assert template.render(secret=Secret("hidden")) == f"{MASK} [{MASK}] {MASK}"


# --- quoting: each program reads back exactly what was written -------------------------------------

AWKWARD = [
    PRINTABLE,
    " leading and trailing ",
    "   ",
    "%(nothing)s",
    "100%",
    "# no comment",
    "; no comment",
    '"quoted"',
    "'quoted'",
    "back\\slash\\n",
    "${HOME} $(id) `id`",
    "{{ x }} {% y %}",
    "ключ é 鍵",
    "a\u00a0b",
    "= : =",
    "[section]",
]


@pytest.mark.parametrize("value", AWKWARD)
def test_config_parser_reads_back_what_was_written(value: str) -> None:
    parser = ConfigParser()
    parser.read_string(f"[email]\nnothing =\npassword = {ini(value)}\nnext = 1\n")
    assert parser["email"]["password"] == value
    assert parser["email"]["next"] == "1"


@pytest.mark.parametrize("value", [*AWKWARD, "\u2028", "tab\there"])
def test_yaml_reads_back_what_was_written(value: str) -> None:
    assert yaml.safe_load(f"password: {templating.yaml(value)}\nnext: 1\n") == {"password": value, "next": 1}


@pytest.mark.parametrize("value", AWKWARD)
def test_systemd_would_read_back_what_was_written(value: str) -> None:
    written = environment_file(value)
    assert written[0] == written[-1] == '"'
    # systemd.exec(5): between double quotes a backslash takes one of these characters literally, and stays before others.
    assert re.sub(r'\\(["\\`$])', r"\1", written[1:-1]) == value
    assert not re.search(r'(?<!\\)(\\\\)*["`$]', written[1:-1])


@pytest.mark.parametrize("value", [value for value in AWKWARD if "{" not in value])
def test_caddyfile_would_read_back_what_was_written(value: str) -> None:
    written = caddyfile(value)
    assert re.sub(r"\\([\"\\])", r"\1", written[1:-1]) == value


# --- the effects of choices -----------------------------------------------------------------------


def homeserver(rendered: Rendered) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(rendered["/etc/matrix-synapse/homeserver.yaml"][0])
    return loaded


def well_known(rendered: Rendered, kind: str) -> dict[str, Any] | None:
    """The well-known document that Caddy serves."""
    found = re.search(
        rf"/\.well-known/matrix/{kind} {{.*?respond `(.*?)` 200", rendered["/etc/caddy/Caddyfile"][0], re.S
    )
    return json.loads(found[1]) if found else None


def test_synapse_removes_what_was_chosen(written: Callable[..., Rendered]) -> None:
    rendered = written("housekeeping")
    chosen = homeserver(rendered)
    assert chosen["media_retention"] == {"remote_media_lifetime": "90d", "local_media_lifetime": "365d"}
    assert chosen["retention"]["default_policy"] == {"max_lifetime": "400d"} and chosen["retention"]["enabled"]
    assert (chosen["forgotten_room_retention_period"], chosen["forget_rooms_on_leave"]) == ("7d", True)
    assert chosen["delete_stale_devices_after"] == "500d"
    limits = rendered["/etc/systemd/journald.conf.d/matrix-metal.conf"][0]
    assert "SystemMaxUse" not in limits and "MaxRetentionSec=14day" in limits
    [postgresql] = [each[0] for path, each in rendered.items() if path.endswith("main/conf.d/matrix-metal.conf")]
    assert "\nautovacuum_analyze_scale_factor = 0.05\n" in postgresql
    unchosen = homeserver(written("homeserver alone"))
    assert not {"media_retention", "retention", "forget_rooms_on_leave", "delete_stale_devices_after"} & set(unchosen)
    assert unchosen["forgotten_room_retention_period"] == "28d"


def test_who_may_invite_is_as_chosen(written: Callable[..., Rendered]) -> None:
    chosen = homeserver(written("housekeeping"))
    assert chosen["block_non_admin_invites"] is True
    assert chosen["rc_invites"] == {"per_user": {"per_second": 0.001, "burst_count": 3}}
    assert not {"block_non_admin_invites", "rc_invites"} & set(homeserver(written("homeserver alone")))


def test_another_program_is_asked_what_is_spam(written: Callable[..., Rendered]) -> None:
    rendered = written("housekeeping")
    [module] = homeserver(rendered)["modules"]
    asked = module["config"]
    assert (module["module"], asked["base_url"]) == (
        "synapse_http_antispam.HTTPAntispam",
        "http://127.0.0.1:8083/spam_check",
    )
    # While it does not answer, people go on.
    assert asked["fail_open"] == dict.fromkeys(asked["enabled_callbacks"], True)
    assert rendered[asked["authorization_path"]][0] == f"synapse_antispam_token{PRINTABLE}"
    assert "modules" not in homeserver(written("homeserver alone"))


def test_the_module_for_that_is_installed_where_it_is_chosen_only(tmp_path: Path) -> None:
    with_it, without = (
        settings_for(each, tmp_path).view(Synapse).virtualenv for each in ("housekeeping", "homeserver alone")
    )
    assert without.requirements in with_it.requirements and with_it.key != without.key
    assert b"synapse-http-antispam==" in with_it.requirements and b"antispam" not in without.requirements


def test_closed_server_lets_nobody_register(written: Callable[..., Rendered]) -> None:
    assert homeserver(written("passwords in Synapse"))["enable_registration"] is False
    by_token = homeserver(written("passwords in Synapse, token"))
    assert by_token["enable_registration"] and by_token["registration_requires_token"]
    assert homeserver(written("passwords in Synapse, open"))["enable_registration_without_verification"]
    confirmed = homeserver(written("passwords in Synapse, open, mail"))
    assert confirmed["enable_registration"] and confirmed["registrations_require_3pid"] == ["email"]
    assert "enable_registration_without_verification" not in confirmed


def test_a_captcha_is_asked_for_by_who_has_the_accounts(written: Callable[..., Rendered]) -> None:
    rendered = written("open, captcha")
    asked = yaml.safe_load(rendered["/etc/mas/config.yaml"][0])["captcha"]
    assert asked == {"service": "hcaptcha", "site_key": "6Lc-the_key", "secret_key": f"captcha_secret_key{PRINTABLE}"}
    assert not [key for key in homeserver(rendered) if "captcha" in key]
    assert "captcha" not in yaml.safe_load(written("open, mail")["/etc/mas/config.yaml"][0])

    alone = written("passwords in Synapse, open, captcha")
    asked = homeserver(alone)
    assert asked["enable_registration"] and asked["enable_registration_captcha"]
    assert "enable_registration_without_verification" not in asked
    # Synapse is started with --no-secrets-in-config, and counts both as secrets.
    keys = [alone[asked[f"recaptcha_{kind}_key_path"]] for kind in ("public", "private")]
    assert keys == [("6Lc-the_key", MASK), (f"captcha_secret_key{PRINTABLE}", MASK)]


@pytest.mark.parametrize(
    ("captcha", "refused"),
    [
        (captcha_of("hcaptcha") | {"secret_key": "s"}, None),
        ({"service": "recaptcha_v3", "site_key": "k", "secret_key": "s"}, "captcha.service"),
        (captcha_of("recaptcha_v2"), "captcha.secret_key: missing"),
        (captcha_of("hcaptcha") | {"secret": "s"}, "captcha.secret: not known"),
    ],
)
def test_the_stand_in_for_mas_refuses_a_captcha_as_it_does(
    written: Callable[..., Rendered], tmp_path: Path, captcha: dict[str, str], refused: str | None
) -> None:
    """Source: crates/config/src/sections/captcha.rs of MAS v1.22.0."""
    config = yaml.safe_load(written("open, captcha")["/etc/mas/config.yaml"][0])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**config, "captcha": captcha}))
    command = [sys.executable, str(ROOT / "tests" / "standin" / "mas-cli"), "config", "check", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == bool(refused) and (refused or "") in done.stderr, done.stderr


def test_web_clients_may_show_the_captcha_that_synapse_asks_for(written: Callable[..., Rendered]) -> None:
    """MAS and Synapse show it in pages of their own, of which Caddy only says who may put them into a frame."""

    def policies(scenario: str) -> list[dict[str, list[str]]]:
        sites = written(scenario)["/etc/caddy/Caddyfile"][0]
        found = re.findall(r'Content-Security-Policy "(default-src[^"]*script-src[^"]*)"', sites)
        return [{words[0]: words[1:] for words in map(str.split, policy.split(";"))} for policy in found]

    element, cinny = policies("passwords in Synapse, open, captcha")
    static = "https://www.gstatic.com/recaptcha/"
    assert element["script-src"] == ["'self'", "'wasm-unsafe-eval'", "https://www.recaptcha.net/recaptcha/", static]
    assert "https:" in element["frame-src"]
    google = "https://www.google.com/recaptcha/"
    assert cinny["script-src"][-2:] == [google, static]
    assert google in cinny["frame-src"] and google in cinny["connect-src"]
    assert "recaptcha" not in written("open, captcha")["/etc/caddy/Caddyfile"][0]


@pytest.mark.parametrize(
    ("scenario", "enabled", "token", "mail", "recovery"),
    [
        ("default", False, False, False, False),
        ("mail", False, False, False, True),
        ("token, no federation", True, True, False, False),
        ("open", True, False, False, False),
        ("open, mail", True, False, True, True),
        ("open, captcha", True, False, False, False),
    ],
)
def test_who_may_make_an_account_in_mas(
    written: Callable[..., Rendered], scenario: str, enabled: bool, token: bool, mail: bool, recovery: bool
) -> None:
    """Without mail, an address could not be confirmed: nobody would get an account, or could add an address to it."""
    account = yaml.safe_load(written(scenario)["/etc/mas/config.yaml"][0])["account"]
    assert account == {
        "password_registration_enabled": enabled,
        "password_registration_token_required": token,
        "password_registration_email_required": mail,
        "password_recovery_enabled": recovery,
        "email_change_allowed": recovery,
    }
    # Synapse does not start if it is told to have accounts as well.
    with_mas = homeserver(written(scenario))
    assert with_mas["matrix_authentication_service"]["enabled"]
    assert not {"enable_registration", "registration_requires_token", "password_config"} & with_mas.keys()


def test_mas_has_everything_that_it_needs_from_the_provider(written: Callable[..., Rendered]) -> None:
    files = written("sign in elsewhere")
    [provider] = yaml.safe_load(files["/etc/mas/config.yaml"][0])["upstream_oauth2"]["providers"]
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", provider["id"])
    assert files[provider["client_secret_file"]][0] == f"sso_client_secret_example{PRINTABLE}"
    assert files[provider["client_secret_file"]][1] == MASK
    # Most providers tell who somebody is at this address, and not all of them in the identity token.
    assert provider["fetch_userinfo"] is True


def test_left_out_roles_are_not_mentioned(written: Callable[..., Rendered]) -> None:
    alone = written("homeserver alone")
    assert well_known(alone, "client") == {"m.homeserver": {"base_url": "https://matrix.x.test"}}
    assert "turn_uris" not in homeserver(alone)
    assert "default_identity_server" not in homeserver(alone)
    assert "matrix_rtc" not in homeserver(alone) and "max_event_delay_duration" not in homeserver(alone)
    everything = json.dumps([alone[path][0] for path in sorted(alone)])
    for foreign in (
        "turn.x.test",
        "identity.x.test",
        "sliding.x.test",
        "rtc.x.test",
        "auth.x.test",
        "/var/lib/sydent/sydent.db",
    ):
        assert foreign not in everything
    assert set(well_known(written("default"), "client") or {}) == {
        "m.homeserver",
        "m.identity_server",
        "org.matrix.msc2965.authentication",
        "org.matrix.msc3575.proxy",
        "org.matrix.msc4143.rtc_foci",
    }


def test_livekit_is_told_its_addresses_and_clients_ask_nobody_else(written: Callable[..., Rendered]) -> None:
    """Without its addresses it would ask STUN servers of Google, and offer those of bridges for containers."""
    rtc = yaml.safe_load(written("zerossl")["/etc/livekit/livekit.yaml"][0])["rtc"]
    assert rtc["node_ip"] == "198.51.100.7,2001:db8::1" and not rtc["use_external_ip"]
    assert rtc["ips"]["includes"] == ["192.0.2.1/32", "2001:db8::1/128"]
    assert rtc["stun_servers"] == ["turn.x.test:3478"]
    [relay] = rtc["turn_servers"]
    assert (relay["host"], relay["port"], relay["protocol"]) == ("turn.x.test", 5349, "tls")
    alone = yaml.safe_load(written("without relay")["/etc/livekit/livekit.yaml"][0])
    assert not {"stun_servers", "turn_servers"} & set(alone["rtc"])


def test_only_users_of_the_chosen_servers_start_calls(written: Callable[..., Rendered]) -> None:
    for scenario, servers in (("default", "x.test"), ("without relay", "x.test,y.test")):
        rendered = written(scenario)
        assert f'LIVEKIT_FULL_ACCESS_HOMESERVERS="{servers}"' in rendered["/etc/lk-jwt/environment"][0].splitlines()
        assert yaml.safe_load(rendered["/etc/livekit/livekit.yaml"][0])["room"] == {"auto_create": False}


def test_the_relay_reaches_livekit_only_on_its_own_machine(written: Callable[..., Rendered]) -> None:
    passed = "udp dport 7882 accept"
    assert passed in written("default")["/etc/turnserver.nft"][0]
    assert passed not in written("relay alone")["/etc/turnserver.nft"][0]


def test_without_federation_nothing_is_served_to_other_homeservers(written: Callable[..., Rendered]) -> None:
    assert well_known(written("alone, no federation"), "server") is None
    unfederated = written("token, no federation")
    # lk-jwt-service asks there who a user is, as identity servers do.
    assert well_known(unfederated, "server") == {"m.server": "matrix.x.test:443"}
    assert homeserver(unfederated)["federation_domain_whitelist"] == []
    for listener in homeserver(unfederated)["listeners"]:
        # Of that for the monitoring there is no other resource.
        assert listener["type"] == "metrics" or listener["resources"][0]["names"] == ["client", "openid"]
    assert well_known(written("default"), "server") == {"m.server": "matrix.x.test:443"}


@pytest.mark.parametrize(
    ("scenario", "directory"),
    [
        ("default", "acme-v02.api.letsencrypt.org-directory"),
        ("zerossl", "acme.zerossl.com-v2-dv90"),
        ("private authority", "ca.x.test-dir"),
        ("internal", "local"),
    ],
)
def test_coturn_reads_the_certificate_where_caddy_stores_it(
    written: Callable[..., Rendered], scenario: str, directory: str
) -> None:
    """Caddy names the directory after the issuer (CertMagic's storage)."""
    certificate = f"/var/lib/caddy/.local/share/caddy/certificates/{directory}/turn.x.test/turn.x.test"
    rendered = written(scenario)
    configuration = rendered["/etc/turnserver.conf"][0].splitlines()
    assert f"cert={certificate}.crt" in configuration
    assert f"pkey={certificate}.key" in configuration


@pytest.mark.parametrize(("scenario", "remembered"), [("default", True), ("internal", False)])
def test_browsers_remember_https_for_names_of_matrix_only(
    written: Callable[..., Rendered], scenario: str, remembered: bool
) -> None:
    """The server name may have another web site one day, and of a trial nothing is left."""
    content = written(scenario)["/etc/caddy/Caddyfile"][0]
    sites = {name: content.partition(f"\n{name} {{")[2].partition("\n}\n")[0] for name in ("x.test", "matrix.x.test")}
    assert {name: "Strict-Transport-Security" in site for name, site in sites.items()} == {
        "x.test": False,
        "matrix.x.test": remembered,
    }
    assert all("nosniff" in site for site in sites.values())


def test_external_account_binding_is_used_only_for_its_issuer(written: Callable[..., Rendered]) -> None:
    content = written("zerossl")["/etc/caddy/Caddyfile"][0]
    assert content.count("eab ") == 1
    turn = content.partition("\nturn.x.test {")[2].partition("\n}\n")[0]
    assert 'eab "key-1" "turn_acme_eab_hmac_key' in turn
    assert f'dir "{ZEROSSL["directory"]}"' in turn and f'dir "{LETS_ENCRYPT["directory"]}"' not in turn


def test_mail_is_sent_as_configured(written: Callable[..., Rendered]) -> None:
    path = "/etc/matrix-synapse/conf.d/email.yaml"
    mail = yaml.safe_load(written("mail")[path][0])["email"]
    assert mail["require_transport_security"] and not mail["force_tls"] and mail["smtp_port"] == 587
    assert mail["smtp_pass"] == f"smtp_password{PRINTABLE}"
    tls = yaml.safe_load(written("mail over tls")[path][0])["email"]
    assert tls["force_tls"] and tls["smtp_port"] == 465
    plain = yaml.safe_load(written("mail without login")[path][0])["email"]
    assert not plain["enable_tls"] and "smtp_user" not in plain
    assert yaml.safe_load(written("default")[path][0]) == {}


def test_passwords_that_people_choose_follow_a_rule(written: Callable[..., Rendered]) -> None:
    """Synapse's, or MAS's, which then has the accounts."""
    synapse, mas = "/etc/matrix-synapse/conf.d/email.yaml", "/etc/mas/config.yaml"
    rule = {"enabled": True, "minimum_length": 8}
    assert yaml.safe_load(written("passwords in Synapse")[synapse][0]) == {"password_config": {"policy": rule}}
    assert yaml.safe_load(written("default")[synapse][0]) == {}
    assert yaml.safe_load(written("default")[mas][0])["passwords"]["minimum_complexity"] == 3


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this computer")
def test_units_are_valid_for_systemd(written: Callable[..., Rendered], tmp_path: Path) -> None:
    rendered = written("default")
    verified = []
    for path, (content, _) in rendered.items():
        if path.startswith("/etc/systemd/system/") and path.endswith((".service", ".path")):
            # The programs are not on this computer.
            content = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", content, flags=re.M)
            (tmp_path / Path(path).name).write_text(content)
            verified.append(str(tmp_path / Path(path).name))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *verified], capture_output=True, text=True)
    wrong = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "Unknown" in line]
    # systemd of Debian 12 does not know these, and does not get them; those rendered here are for Debian 13.
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout.split()[1]
    if int(version) < 254:
        wrong = [line for line in wrong if not re.search("Unknown key '?Restart(Steps|MaxDelaySec)", line)]
    assert len(verified) >= 4
    assert wrong == []


def test_the_user_of_every_service_is_made(written: Callable[..., Rendered]) -> None:
    """Unless a Debian package brings the service, and with it the user."""
    rendered = written("default")
    lines = [
        line
        for path, (text, _) in rendered.items()
        if path.startswith("/etc/sysusers.d/")
        for line in text.splitlines()
    ]
    made = {line.split()[1] for line in lines if line.startswith("u ")}
    needed = {
        unit.user for role in ROLES.values() for unit in role.units if f"/etc/systemd/system/{unit.name}" in rendered
    }
    needed |= {user.name for role in ROLES.values() for user in role.users}
    assert len(needed) > 8
    assert needed - made == set()


@pytest.mark.parametrize("release", ["12", "13"])
def test_every_service_comes_back_but_not_in_the_middle_of_a_restore(
    written: Callable[..., Rendered], release: str
) -> None:
    """After a crash; after a boot while data is being put back, it would run with half of them."""
    rendered = written("default", release)
    lacking = []
    for role in ROLES.values():
        for unit in role.units if release in role.debian else ():
            path = f"/etc/systemd/system/{unit.name.format(version=OF_DEBIAN[release])}"
            files = [
                content for each, (content, _) in rendered.items() if each == path or each.startswith(f"{path}.d/")
            ]
            lines = "\n".join(files).splitlines()
            for wanted in (r"Restart=(always|on-failure)", r"ConditionPathExists=\|!/etc/matrix-metal/restore"):
                if not any(re.fullmatch(wanted, line) for line in lines):
                    lacking.append(f"{unit.name}: {wanted}")
    assert lacking == []


# What restarts everything after updates does what root does, and is in no list of what is confined (docs/security.md).
UNCONFINED = (UPDATES_RESTARTS,)


def test_what_systemd_runs_for_a_moment_is_confined(written: Callable[..., Rendered], tmp_path: Path) -> None:
    """Jobs of timers, and what writes mails, presents certificates, loads packet filters. Some are in some deployments only."""
    bounds = {timer.service: timer.exposure for role in ROLES.values() for timer in role.timers}
    helpers = {helper for role in ROLES.values() for helper in role.helpers if helper.endswith(".service")}
    bounds |= dict.fromkeys(helpers - {*UNCONFINED}, HELPER_EXPOSURE)
    found, wrong = set[str](), {}
    for scenario in ("default", "files", "mail", "backup to S3"):
        rendered = written(scenario)
        for name, bound in bounds.items():
            content, _ = rendered.get(f"/etc/systemd/system/{name}", ("", ""))
            if content:
                found.add(name)
                unit = tmp_path / name
                unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", content, flags=re.M))
                command = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(unit)]
                said = subprocess.run(command, capture_output=True, text=True).stdout
                level = re.search(r"exposure level for .*: ([0-9.]+)", said)
                if not level or float(level[1]) > bound:
                    wrong[name] = level and level[1]
    assert (wrong, sorted(bounds.keys() - found)) == ({}, [])


def test_a_role_adds_routes_to_another_roles_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before that site's own routes, so that they take precedence; and on no other site."""
    made = settings_for("default", tmp_path)
    caddy = made.view(Caddy)
    routes = Site("login", made.view(Synapse), "synapse", site=None, routes="login/routes.caddy.j2")
    added = replace(caddy, sites=(routes, *caddy.sites))
    text = "\thandle /_matrix/client/*/login {\n\t\treverse_proxy 127.0.0.1:1\n\t}\n"
    both = ChoiceLoader([DictLoader({"login/routes.caddy.j2": text}), FileSystemLoader(TEMPLATES)])
    monkeypatch.setattr(templating._ENVIRONMENT, "loader", both)
    content, _ = templating.render("caddy/Caddyfile.j2", added.values())
    site = content.partition("\nmatrix.x.test {")[2].partition("\n}\n")[0]
    assert content.count(text) == 1 and text in site
    assert site.index("/_matrix/client/*/login") < site.index("@homeserver path")


def test_compiled_templates_are_kept_and_a_changed_one_is_compiled_anew(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("one")
    for text in ("one", "two"):
        (tmp_path / "a.j2").write_text(text)
        for _ in range(2):
            environment = templating._environment(tmp_path / "cache")
            environment.loader = FileSystemLoader(tmp_path)
            assert environment.get_template("a.j2").render() == text
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null/cache"])
def test_cache_that_cannot_be_written_does_no_harm(place: str, tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("one")
    environment = templating._environment(Path(place))
    environment.loader = FileSystemLoader(tmp_path)
    assert environment.get_template("a.j2").render() == "one"
