"""The Matrix Authentication Service: how it is installed, connected and confined, and when a run refuses to touch it.

With its stand-in, or with the real program that MAS_BINARY names. What people do with it is in test_sign_in.py.
"""

import asyncio
import base64
import json
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roles import BANS, CADDY, CHECK_MAS, MAS, MAS_INTERNAL_PORT, MAS_PORT, MAS_SOCKET, POSTGRES, SYNAPSE, SYNAPSE_PORT
from tests.built import built
from tests.conftest import Deployed, complete, own
from tests.deployment import Deployment
from tests.e2e.banned import ATTEMPTS, assert_bans_at_mas
from tests.e2e.client import Outside, expect_json, register
from tests.e2e.database import query
from tests.e2e.test_confinement import Machine, Service, assert_reaches_no_other, neighbours
from tests.e2e.test_refusals import assert_refused
from tests.standin.archives import mas_archive, real_mas
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import Vault

pytestmark = [pytest.mark.role("mas"), pytest.mark.once("debian13")]

WITHOUT = ("postgres", "synapse", "caddy")
ROLES = (*WITHOUT, "mas", "bans")
UNITS = "mas.service matrix-synapse.service caddy.service 'postgresql@*'"
PROVIDER = {"id": "example", "issuer": "https://id.example.net", "client_id": "matrix", "name": "Example"}


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def deployed(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployed]:
    """A homeserver that has MAS from the beginning. Before that, that on Debian 13 had an account of Synapse's for a while."""
    name = own(f"mas{13 if request.param == 'trixie' else 12}")
    host = testbed.up(name, release=request.param, layers=built(testbed, request.param))
    deployment = complete(testbed, host, tmp_path_factory.mktemp("mas"), release_page, user="admin")
    if request.param == "trixie":
        _refused_with_accounts(deployment, host)
    assign(deployment, ROLES)
    deployment.choose(**deployment.settings, bans_attempts=ATTEMPTS)
    deployment.run("-y")
    yield Deployed(host, deployment)
    host.down()


@pytest.fixture(scope="module")
def outside(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    return Outside(deployed.host, tmp_path_factory.mktemp("outside"))


def assign(deployment: Deployment, roles: tuple[str, ...]) -> None:
    deployment.assign({role: [deployment.hosts[0].name] for role in roles})


def invocations(host: Host) -> list[str]:
    return host.run(f"systemctl show --value -p InvocationID {UNITS}").stdout.split()


def wait_until_healthy(host: Host) -> None:
    for role in (MAS, SYNAPSE):
        host.run(f"until ( {role.units[0].health} ); do sleep 0.1; done", timeout=120)


def _refused_with_accounts(deployment: Deployment, host: Host) -> None:
    """MAS is not given to a homeserver with accounts by accident: nobody could log in."""
    assign(deployment, WITHOUT)
    deployment.run("-y")
    register(host, "early", "a password")
    saved = deployment.vault.read_bytes()
    assign(deployment, ROLES)
    before = invocations(host)
    assert_refused(
        deployment.run("-y", check=False),
        "Synapse has 1 account, ",
        f"or move the accounts: python manage.py {deployment.name} mas migrate",
    )
    assert invocations(host) == before and deployment.vault.read_bytes() == saved
    # As if the administrator had not made it yet.
    query(host, "DELETE FROM users; DELETE FROM profiles; DELETE FROM user_directory", "synapse")


# The first test: the others change something and put it back.
def test_a_second_run_changes_nothing(deployed: Deployed) -> None:
    before = invocations(deployed.host)
    again = deployed.deployment.run("-y")
    assert again.changed == []
    assert again.results["results"]["totals"]["no_change"] > len(ROLES)
    assert deployed.deployment.run().planned == []
    assert invocations(deployed.host) == before


@pytest.mark.once("debian13")
def test_the_verification_finds_nothing_wrong(deployed: Deployed) -> None:
    status, output = deployed.deployment.verify()
    assert status == 0 and "Nothing is wrong" in output, output
    assert "Matrix Authentication Service v" in output, output


# --- routes ---------------------------------------------------------------------------------------


def test_clients_reach_synapse_and_mas_each_where_it_answers(outside: Outside) -> None:
    issuer = outside.url("auth", "/")
    with outside.http() as http:
        wellknown = expect_json(http.get(outside.url("", "/.well-known/matrix/client")))
        assert wellknown["org.matrix.msc2965.authentication"] == {"issuer": issuer, "account": f"{issuer}account/"}
        assert wellknown["m.homeserver"]["base_url"] == outside.url("matrix")
        # Clients ask Synapse, which asks MAS.
        for path in ("/_matrix/client/v1/auth_metadata", "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata"):
            metadata = expect_json(http.get(outside.url("matrix", path)))
            assert metadata == expect_json(http.get(outside.url("auth", "/.well-known/openid-configuration")))
            assert metadata["issuer"] == issuer and "create" not in metadata["prompt_values_supported"]

        flows = expect_json(http.get(outside.url("matrix", "/_matrix/client/v3/login")))["flows"]
        assert {"m.login.sso", "m.login.password"} <= {flow["type"] for flow in flows}
        assert any(flow.get("oauth_aware_preferred") for flow in flows), "this is not MAS's answer"
        # Synapse would not know these paths.
        for path in ("v3/login", "r0/login", "v3/logout", "v3/logout/all", "v3/refresh", "v3/login/sso/redirect"):
            answer = http.request(
                "GET" if path.endswith("redirect") else "POST",
                outside.url("matrix", f"/_matrix/client/{path}"),
                json={},
            )
            assert "M_UNRECOGNIZED" not in answer.text or answer.status_code == 405, f"{path}: {answer.text}"
            assert answer.status_code != 404, f"{path}: {answer.text}"
        # Paths that only look like those are Synapse's.
        for path, errcode in (("v3/sync", "M_MISSING_TOKEN"), ("v3/loginx", "M_UNRECOGNIZED")):
            assert http.get(outside.url("matrix", f"/_matrix/client/{path}")).json()["errcode"] == errcode, path
        # The second is where a browser goes for the pages' style.
        assert http.get(outside.url("auth", "/")).status_code in (200, 303)
        assert http.get(outside.url("auth", "/assets/none.css")).status_code == 404


@pytest.mark.once("debian13")
def test_clients_are_told_at_once_whether_people_may_make_accounts(deployed: Deployed, outside: Outside) -> None:
    """Synapse would tell them what MAS said when Synapse was started, and is not restarted for it."""
    deployment, settings = deployed.deployment, deployed.deployment.settings
    synapse = deployed.host.run("systemctl show --value -p InvocationID matrix-synapse").stdout

    def told() -> set[bool]:
        with outside.http() as http:
            found = [
                http.get(outside.url("matrix", f"/_matrix/client/{path}"), headers={"Origin": outside.url("chat")})
                for path in ("v1/auth_metadata", "unstable/org.matrix.msc2965/auth_metadata")
            ]
            answers = [expect_json(answer) for answer in found]
            if real_mas():
                # Clients in browsers may read it.
                assert {answer.headers["Access-Control-Allow-Origin"] for answer in found} == {"*"}
            assert answers[0] == expect_json(http.get(outside.url("auth", "/.well-known/openid-configuration")))
        return {"create" in answer["prompt_values_supported"] for answer in answers}

    try:
        assert told() == {False}
        deployment.choose(**settings, registration="token")
        deployment.run("-y")
        assert told() == {True}
    finally:
        deployment.choose(**settings)
        deployment.run("-y")
    assert told() == {False}
    assert deployed.host.run("systemctl show --value -p InvocationID matrix-synapse").stdout == synapse


@pytest.mark.once("debian13")
def test_what_is_not_for_clients_is_not_reachable(outside: Outside) -> None:
    inside = ("/health", "/api/admin/v1/users", "/metrics", "/_synapse/mas/query_user", "/_synapse/admin/v1/register")
    elsewhere = ("/_matrix/client/versions", "/_matrix/client/v3/sync", "/_matrix/federation/v1/version")
    with outside.http() as http:
        statuses = {
            url: http.get(url).status_code
            for url in [outside.url(name, path) for name in ("auth", "matrix") for path in inside]
            + [outside.url("auth", path) for path in elsewhere]
        }
    assert {url: status for url, status in statuses.items() if status != 404} == {}


def test_whoever_tries_passwords_is_banned(deployed: Deployed) -> None:
    assert_bans_at_mas(deployed.host, deployed.deployment)


def test_synapse_and_mas_accept_each_other(deployed: Deployed, outside: Outside) -> None:
    """Each with the secret that they share."""
    with outside.http() as http:
        url = outside.url("matrix", "/_matrix/client/v3/account/whoami")
        refused = http.get(url, headers={"Authorization": "Bearer mat_unknown"})
        # 503 if Synapse could not ask.
        assert expect_json(refused, 401)["errcode"] == "M_UNKNOWN_TOKEN"
    asked = deployed.host.run(
        "curl -s -o /dev/null -w '%{http_code}' -H \"Authorization: Bearer $(cat /etc/mas/secrets/synapse)\" "
        f"http://127.0.0.1:{SYNAPSE_PORT}/_synapse/mas/is_localpart_available?localpart=nobody"
    ).stdout
    assert asked == "200"


@pytest.mark.once("debian13")
def test_the_administrator_sees_the_rooms(deployed: Deployed) -> None:
    """By Synapse's admin API, with a token that MAS gives for it. The first command makes the account, the second has it."""
    manage, host = deployed.deployment.manage, deployed.host
    for command in ("rooms", "reports"):
        listed = manage(command, "list", "--json")
        assert (listed.returncode, json.loads(listed.stdout)) == (0, []), listed.stderr
    assert "there is no room" in manage("rooms", "show", f"!none:{host.domain}").stderr
    assert query(host, "SELECT name, admin FROM users", "synapse").split() == [f"@matrix-metal:{host.domain}|0"]


# --- confinement ----------------------------------------------------------------------------------


def test_who_may_read_and_connect(deployed: Deployed) -> None:
    host = deployed.host
    shown = host.run(f"stat -c '%a %U:%G %n' /etc/mas /etc/mas/* /etc/mas/secrets/* /run/mas {MAS_SOCKET}").stdout
    assert shown.splitlines() == [
        "750 root:mas /etc/mas",
        "640 root:mas /etc/mas/config.yaml",
        "750 root:mas /etc/mas/secrets",
        "640 root:mas /etc/mas/secrets/admin_client",
        "640 root:mas /etc/mas/secrets/encryption",
        "640 root:mas /etc/mas/secrets/signing.pem",
        "640 root:mas /etc/mas/secrets/synapse",
        "750 mas:matrix-sockets /run/mas",
        f"660 mas:matrix-sockets {MAS_SOCKET}",
    ]
    places = {
        "Synapse's": f"http://127.0.0.1:{MAS_PORT}/.well-known/openid-configuration",
        "internal": f"http://127.0.0.1:{MAS_INTERNAL_PORT}/health",
        "Caddy's": f"--unix-socket {MAS_SOCKET} http://localhost/.well-known/openid-configuration",
    }
    reached = {
        user: {
            name
            for name, place in places.items()
            if host.run(f"runuser -u {user} -- curl -sm 5 -o /dev/null {place}", check=False).returncode == 0
        }
        for user in ("nobody", "matrix-synapse", "caddy", "caddy -G matrix-sockets", "postgres", "mas", "root")
    }
    assert reached == {
        "nobody": set(),
        "matrix-synapse": {"Synapse's"},
        "caddy": set(),
        # As its unit gives it that group.
        "caddy -G matrix-sockets": {"Caddy's"},
        "postgres": set(),
        # It may connect to itself, as every user to what is its own.
        "mas": reached["mas"],
        "root": set(places),
    }
    # What only root and Synapse may ask is nowhere else.
    for place in ("Synapse's", "Caddy's"):
        wrong = places[place].replace("/.well-known/openid-configuration", "/api/admin/v1/users")
        assert host.run(f"curl -s -o /dev/null -w '%{{http_code}}' {wrong}").stdout == "404"


def test_a_service_that_was_taken_over_reaches_no_other(deployed: Deployed) -> None:
    """Neither does MAS reach the others' secrets, nor do Synapse, Caddy and fail2ban reach MAS's. So it is with fail2ban's."""
    host, roles = deployed.host, (MAS, SYNAPSE, CADDY, POSTGRES, BANS)
    with neighbours(host) as pids:
        machine = Machine(host, pids, roles)
        for role in (CADDY, SYNAPSE, MAS, BANS):
            assert_reaches_no_other(machine, Service.of(role, role.units[0]))
    wait_until_healthy(host)


# --- running --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "seconds"), [("restart", 3), ("kill -s KILL", 10)])
def test_it_is_up_again_after_a_restart_or_a_crash(deployed: Deployed, action: str, seconds: float) -> None:
    began = time.monotonic()
    deployed.host.run(
        f"systemctl {action} mas; sleep 0.1; until {MAS.units[0].health}; do sleep 0.05; done", timeout=60
    )
    assert time.monotonic() - began < seconds


def test_it_waits_for_its_database(deployed: Deployed) -> None:
    """After a crash of PostgreSQL, or when that starts later at boot, nobody has to start it by hand."""
    host = deployed.host
    host.run("systemctl stop 'postgresql@*'", timeout=120)
    unwell = host.run(MAS.units[0].health, check=False).returncode
    host.run("systemctl restart --no-block mas; sleep 3; systemctl start postgresql", timeout=120)
    wait_until_healthy(host)
    assert unwell != 0, "it says that it is well without its database"


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.once("debian13")
def test_a_lost_or_replaced_encryption_secret_is_refused(deployed: Deployed) -> None:
    """MAS could not read what it has encrypted in its database."""
    deployment, host = deployed.deployment, deployed.host
    before, saved = invocations(host), deployment.vault.read_bytes()
    vault = Vault.open(deployment.vault)
    vault.set("mas_encryption_secret", "0" * 64, force=True)
    vault.save()
    replaced = deployment.run("-y", check=False)
    # As after a vault was restored that is older than MAS.
    (deployment.directory / "older.vault").write_bytes(saved)
    lost = Vault.open(deployment.vault)
    lost._values.pop("mas_encryption_secret")
    lost.save()
    missing = deployment.run("-y", check=False)
    deployment.vault.write_bytes(saved)
    older = Vault.open(deployment.vault)
    older._values.pop("mas_signing_key")
    older.save()
    unsigned = deployment.run("-y", check=False)
    deployment.vault.write_bytes(saved)
    assert_refused(
        unsigned, "has used mas_signing_key, and ", "trial.vault does not have it", "clients and applications pin it"
    )
    assert_refused(replaced, "mas_encryption_secret, and ", "trial.vault has another: restore that file from a backup")
    assert_refused(
        missing, "mas_encryption_secret, and ", "trial.vault does not have it", "/etc/mas/secrets/encryption"
    )
    assert invocations(host) == before


@pytest.mark.once("debian13")
def test_new_secrets_are_those_of_both_sides(deployed: Deployed, outside: Outside) -> None:
    """Of Synapse and MAS, and of MAS and the commands."""
    rotated = deployed.deployment.manage("secrets", "rotate", "mas_synapse_secret", "mas_admin_client_secret", "--yes")
    assert rotated.returncode == 0, rotated.stdout + rotated.stderr
    test_synapse_and_mas_accept_each_other(deployed, outside)
    listed = deployed.deployment.manage("rooms", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert deployed.deployment.run("-y").changed == []


@pytest.mark.once("debian13")
def test_a_version_that_ends_at_once_is_put_back(deployed: Deployed, tmp_path: Path) -> None:
    """Its check of the configuration finds nothing wrong."""
    deployment, settings = deployed.deployment, deployed.deployment.settings
    program = "#!/bin/sh\ncase $* in *server*) echo I cannot.; exit 3 ;; esac\n"
    deployment.choose(**settings, mas_archive=str(mas_archive(tmp_path, program.encode())))
    try:
        run = deployment.run("-y", check=False)
        assert run.status == 1 and re.search(
            r"Matrix Authentication Service v[\d.]+ did not come up: I cannot\. The v[\d.]+ of before serves again, \d s later",
            run.refusal,
        ), run.output
        wait_until_healthy(deployed.host)
    finally:
        deployment.choose(**settings)
        deployment.run("-y")
    assert deployment.run("-y").changed == []


@pytest.mark.once("debian13")
def test_switching_it_off_is_refused_once_it_has_accounts(deployed: Deployed) -> None:
    deployment, host = deployed.deployment, deployed.host
    insert = "INSERT INTO users (user_id, username, created_at) VALUES (gen_random_uuid(), 'anna', now())"
    query(host, insert, "mas")
    try:
        assign(deployment, WITHOUT)
        assert_refused(
            deployment.run("-y", check=False),
            "the Matrix Authentication Service has 1 account, which Synapse cannot take back",
            f"(inventories/{deployment.name}.py)",
        )
    finally:
        assign(deployment, ROLES)
        query(host, "DELETE FROM users WHERE username = 'anna'", "mas")


@pytest.mark.once("debian13")
def test_a_restart_is_refused_if_it_would_fail(deployed: Deployed, tmp_path: Path) -> None:
    """MAS's own check misses the first two."""
    deployment, host = deployed.deployment, deployed.host
    encryption, policy = "/etc/mas/secrets/encryption", "$(readlink -f /opt/mas/current)/share/policy.wasm"
    for harm, repair, complaint in (
        (f"echo >>{encryption}", f"truncate -s -1 {encryption}", f"{encryption} must not be empty or end in a newline"),
        (f"chmod 600 {policy}", f"chmod 644 {policy}", "policy.wasm"),
        ("echo 'http: [' >/etc/mas/local.yaml", "rm /etc/mas/local.yaml", "local.yaml"),
    ):
        host.run(harm)
        try:
            checked = host.run(CHECK_MAS, check=False)
        finally:
            host.run(repair)
        assert checked.returncode and complaint in checked.stderr, f"{harm}: {checked.stderr}"
    host.run(CHECK_MAS)

    before = invocations(host)
    host.run("cd /etc/mas; echo 'http: [' >local.yaml; chgrp mas local.yaml; chmod 640 local.yaml; touch config.yaml")
    try:
        run = deployment.run("-y", check=False)
        assert run.status == 1, run.output
        assert "mas.service was not touched: its new configuration is refused, see above." in run.refusal
        # The real one leaves out the first slash.
        assert "etc/mas/local.yaml" in run.output
        assert invocations(host) == before
        status, output = deployment.verify("tests/host/test_mas.py")
        assert status and "would not start again" in output and "local.yaml" in output, output
    finally:
        host.run("rm /etc/mas/local.yaml")
    assert deployment.run("-y").changed == ["Run the Matrix Authentication Service"]


@pytest.mark.once("debian13")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sso": [PROVIDER]}, ["sso_client_secret_example is not set", "python vault.py set "]),
        ({"sso": [{**PROVIDER, "issuer": "http://id.example.net"}]}, ["sso", "https"]),
        ({"sso": [PROVIDER, PROVIDER]}, ["sso has two providers with the id example"]),
        (
            {"registration": "open", "captcha": {"service": "hcaptcha", "site_key": "k"}},
            ["captcha_secret_key is not set", "python vault.py set "],
        ),
        ({"mas_sha256": {"amd64": "0" * 64}}, ["mas", "sha256", "0000"]),
        ({"mas_archive": "/etc/hostname"}, ["mas_archive", "/etc/hostname"]),
    ],
    ids=[
        *("no client secret", "unencrypted provider", "two providers of one name", "no secret of the captcha"),
        *("another archive", "no archive"),
    ],
)
def test_wrong_settings_are_refused(deployed: Deployed, settings: dict[str, object], words: list[str]) -> None:
    deployment, file = deployed.deployment, deployed.deployment.directory / "group_data" / "trial.py"
    before, kept = invocations(deployed.host), file.read_text()
    file.write_text(kept + "".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    try:
        assert_refused(deployment.run("-y", check=False), *words)
    finally:
        file.write_text(kept)
    assert invocations(deployed.host) == before


@pytest.mark.once("debian13")
def test_the_verification_says_what_is_wrong_and_keeps_the_secret(deployed: Deployed) -> None:
    """`mas-cli doctor` shows the secret that it shares with Synapse, if it is wrong."""
    host, file = deployed.host, "/etc/mas/secrets/synapse"
    host.run(f"cp -a {file} /run/kept; printf wrong-and-still-secret >{file}; touch -d @0 {file}")
    try:
        status, output = deployed.deployment.verify("tests/host/test_mas.py")
    finally:
        host.run(f"cp -a /run/kept {file}; touch -d @0 {file}")
    assert status and "Synapse refuses the secret of MAS" in re.sub(r"\s+", " ", output), output
    assert "wrong-and-still-secret" not in output


# The last test: it leaves an account.
@pytest.mark.once("debian13")
def test_people_are_sent_to_the_new_name_of_mas(deployed: Deployed, outside: Outside) -> None:
    """Synapse asks MAS for its addresses once after its start. It sends there who wants a new identity."""
    deployment, settings = deployed.deployment, deployed.deployment.settings
    made = deployment.manage("accounts", "create", "sent-elsewhere", "--generate", "--json")
    assert made.returncode == 0, made.stderr
    account = asyncio.run(outside.log_in("sent-elsewhere", json.loads(made.stdout)["password"])) if real_mas() else None

    def sent_to() -> str:
        """Where Synapse sends who has an identity, and wants another one."""
        assert account
        for _ in range(2):
            key = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
            keys = {"user_id": account.user_id, "usage": ["master"], "keys": {f"ed25519:{key}": key}}
            with outside.http() as http:
                url = outside.url("matrix", "/_matrix/client/v3/keys/device_signing/upload")
                answer = http.post(url, json={"master_key": keys}, headers=account.authorization)
        return str(expect_json(answer, 401)["params"]["org.matrix.cross_signing_reset"]["url"])

    if account:
        assert sent_to().startswith(outside.url("auth", "/account/"))
    try:
        deployment.choose(**settings, auth_domain=f"login.{deployed.host.domain}")
        assert "Run Synapse" in deployment.run("-y").changed
        if account:
            assert sent_to().startswith(outside.url("login", "/account/"))
    finally:
        deployment.choose(**settings)
        deployment.run("-y")
