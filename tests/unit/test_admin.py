"""The administrator's pages: from where, and with what password."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12
from passlib.hash import bcrypt

from operations.templating import render
from settings import SettingError, Settings, mistakes
from settings.admin import PASSWORD, SESSION, Admin
from settings.caddy import Caddy
from settings.mas import Mas
from tests.conftest import ADMIN_PASSWORD_HASH
from tests.deployment import Deployment
from tests.unit.test_manage import CHOSEN, refusal
from tests.unit.test_settings import refusal as refused
from tests.unit.test_settings import settings
from vault import Vault

HERE: dict[str, Sequence[str]] = {role: ["one"] for role in ("caddy", "synapse", "postgres", "admin")}


def test_by_default_nobody_comes_from_outside(tmp_path: Path) -> None:
    by_default = settings(tmp_path, HERE)
    assert mistakes(by_default) == []
    assert by_default.view(Admin).networks == () and by_default.view(Admin).web_names == ()
    assert "admin.x.test" not in by_default.view(Caddy).domains
    asked_for = settings(tmp_path, HERE, admin_networks=["192.0.2.7", "2001:db8::/48"])
    assert asked_for.view(Admin).networks == ("127.0.0.0/8", "::1/128", "192.0.2.7/32", "2001:db8::/48")
    assert "admin.x.test" in asked_for.view(Caddy).domains


@pytest.mark.parametrize("value", [["192.0.2.1/24"], ["office"], "192.0.2.7", None])
def test_what_is_no_network_is_refused(value: object) -> None:
    line = refused(admin_networks=value)
    assert "admin_networks" in line and 'such as ["192.0.2.7", "2001:db8::/48"]' in line
    assert len(line.splitlines()) == 1


def test_it_is_where_caddy_and_synapse_are(tmp_path: Path) -> None:
    [line] = mistakes(settings(tmp_path, {**HERE, "caddy": ["two"]}))
    assert "admin and caddy must be on the same machine" in line
    [line] = mistakes(settings(tmp_path, {**HERE, "caddy": []}))
    assert "admin needs the role caddy" in line


def test_without_a_password_nobody_is_let_in(tmp_path: Path) -> None:
    chosen = settings(tmp_path, HERE)
    text = door(chosen)
    assert "403" in text and not any(each in text for each in ("basicauth", "reverse_proxy", "import admin_page"))
    chosen = settings(tmp_path, HERE)
    chosen.vault.set(PASSWORD, ADMIN_PASSWORD_HASH)
    text = door(chosen)
    # In a route, what is first in the file is first in a request.
    assert (
        text.index("basicauth")
        < text.index("Set-Cookie")
        < min(map(text.index, ("reverse_proxy", "import admin_page")))
    )


def test_another_password_ends_all_sessions(tmp_path: Path) -> None:
    chosen = settings(tmp_path, HERE)
    chosen.vault.get(SESSION)
    sessions = set()
    for number in (1, 2):
        chosen.vault.set(PASSWORD, ADMIN_PASSWORD_HASH[:-1] + str(number))
        sessions.add(Admin.of(chosen).session.reveal())
    chosen.vault.rotate(SESSION)
    sessions.add(Admin.of(chosen).session.reveal())
    assert len(sessions) == 3 and all(re.fullmatch("[0-9a-f]{64}", each) for each in sessions)
    chosen.vault.set(PASSWORD, "a password")
    with pytest.raises(SettingError, match=r"is no hash of bcrypt: .* admin password"):
        Admin.of(chosen)


def test_mas_knows_where_they_are(tmp_path: Path) -> None:
    found = settings(tmp_path, {**HERE, "mas": ["one"]})
    redirects = found.view(Mas).ketesa_redirects
    assert redirects[0] == "https://admin.x.test/auth-callback/"
    assert redirects[1] == "http://admin.x.test.localhost:8450/auth-callback/"
    assert settings(tmp_path, {**HERE, "mas": ["one"], "admin": []}).view(Mas).ketesa_redirects == []
    assert "connect-src 'self' https://auth.x.test;" in found.view(Admin).policy


def test_with_mas_its_administration_is_behind_the_same_door(tmp_path: Path) -> None:
    roles = {**HERE, "mas": ["one"]}
    chosen = settings(tmp_path, roles)
    chosen.vault.set(PASSWORD, ADMIN_PASSWORD_HASH)
    text = door(chosen)
    admin_api = text.partition("handle /api/admin/* {")[2].partition("\n\t\t}\n")[0]
    assert "unix//run/mas/admin.sock" in admin_api and "web.sock" not in admin_api
    told = json.loads(re.search("auth_metadata {.*?respond `(.*?)` 200", text, re.S)[1])  # type: ignore[index]
    assert (
        told["issuer"] == "https://auth.x.test/" and told["authorization_endpoint"] == "https://auth.x.test/authorize"
    )
    for name in ("token", "registration"):
        assert told[f"{name}_endpoint"].startswith("http://{http.request.hostport}/oauth2/")
    # Nothing but the admin API is on that socket, and it is on no other.
    listeners = yaml.safe_load(render("mas/config.yaml.j2", {"mas": chosen.view(Mas)})[0])["http"]["listeners"]
    found = {each["name"]: [resource["name"] for resource in each["resources"]] for each in listeners}
    assert found["admin"] == ["adminapi"] and "adminapi" not in found["web"] + found["synapse"]
    without = settings(tmp_path, {**roles, "admin": []}).view(Mas)
    assert "admin.sock" not in render("mas/config.yaml.j2", {"mas": without})[0]


def test_the_command_keeps_a_hash_only(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, [], CHOSEN, roles={role: ["a"] for role in HERE})
    assert "admin password, then deploy" in refusal(deployment, "admin", "open")
    for wrong in ("short", "ä" * 37):
        done = deployment.manage("admin", "password", "--password-stdin", stdin=f"{wrong}\n")
        assert done.returncode == 1 and done.stderr == (
            "manage: the password must have at least 12 characters, and at most 72 bytes\n"
        )
    assert not deployment.vault.exists()
    done = deployment.manage("admin", "password", "--password-stdin", stdin="correct horse battery\n")
    assert done.returncode == 0 and "pyinfra" in done.stdout and "correct" not in done.stdout
    kept = Vault.open(deployment.vault).get(PASSWORD).reveal()
    assert bcrypt.verify("correct horse battery", kept)
    assert "is made from what you type: " in refusal(deployment, "secrets", "set", PASSWORD)


def test_a_certificate_is_asked_for_at_the_name_and_not_in_the_tunnel(tmp_path: Path) -> None:
    both: dict[str, Sequence[str]] = {**HERE, "monitoring": ["one"]}
    [line] = mistakes(settings(tmp_path, both, admin_certificates=True))
    assert "admin_certificates is True, but admin_networks is empty" in line and '["0.0.0.0/0", "::/0"]' in line
    assert "admin_certificates" in refused(admin_certificates="yes") and "True or False" in refused(
        admin_certificates="yes"
    )
    for networks, certificates in (([], False), (["192.0.2.7"], False), (["192.0.2.7"], True)):
        chosen = settings(tmp_path, both, admin_networks=networks, admin_certificates=certificates)
        chosen.vault.set(PASSWORD, ADMIN_PASSWORD_HASH)
        asked = "certificate in your browser" in render("caddy/Caddyfile.j2", chosen.view(Caddy).values())[0]
        assert not asked and not chosen.view(Admin).fingerprints
    # There is none yet.
    text = render("caddy/Caddyfile.j2", chosen.view(Caddy).values())[0]
    assert text.count("knows no certificate") == 2 and "client_auth" not in text and "knows no" not in door(chosen)
    der = b"of anna"
    chosen.vault.set("admin_certificate_anna", base64.b64encode(der).decode())
    chosen.vault.save()
    chosen = settings(tmp_path, both, admin_networks=["192.0.2.7"], admin_certificates=True)
    text = render("caddy/Caddyfile.j2", chosen.view(Caddy).values())[0]
    sites = [text.partition(f"\n{name}.x.test {{\n")[2].partition("\n}\n")[0] for name in ("admin", "monitor")]
    for site in sites:
        assert f"trusted_ca_cert {base64.b64encode(der).decode()}" in site
        assert site.index(hashlib.sha256(der).hexdigest()) < site.index("basicauth")
    assert text.count("client_auth") == 2 and "fingerprint" not in door(chosen)


def test_a_certificate_is_in_its_file_and_in_the_vault_without_its_key(tmp_path: Path) -> None:
    chosen = {**CHOSEN, "admin_networks": ["192.0.2.7"], "admin_certificates": True}
    deployment = Deployment(tmp_path, [], chosen, roles={role: ["a"] for role in HERE})
    create = ("admin", "certificate", "create")
    assert "lower-case letters" in refusal(deployment, *create, "Anna", "--generate")
    assert "There is none" in deployment.manage("admin", "certificate", "list").stdout
    for wrong in ("short", "ä" * 12):
        done = deployment.manage(*create, "anna", "--password-stdin", stdin=f"{wrong}\n")
        assert done.returncode == 1 and "at least 12 characters, and only letters" in done.stderr
    assert not deployment.vault.exists() and not (tmp_path / "anna.p12").exists()
    done = deployment.manage(*create, "anna", "--days", "30", "--password-stdin", stdin="correct horse battery\n")
    assert done.returncode == 0 and "anna.p12" in done.stdout and "correct" not in done.stdout
    file = tmp_path / "anna.p12"
    assert file.stat().st_mode & 0o777 == 0o600
    key, certificate, others = pkcs12.load_key_and_certificates(file.read_bytes(), b"correct horse battery")
    assert key and certificate and not others
    kept = base64.b64decode(Vault.open(deployment.vault).get("admin_certificate_anna").reveal())
    assert kept == certificate.public_bytes(Encoding.DER)
    # Who connects is told it, and should learn no names of people.
    assert "anna" not in certificate.subject.rfc4514_string() and "a.test" in certificate.subject.rfc4514_string()
    [shown] = json.loads(deployment.manage("admin", "certificate", "list", "--json").stdout)
    assert (shown["name"], shown["expired"]) == ("anna", False)
    assert shown["fingerprint"] == hashlib.sha256(kept).hexdigest()
    assert "there is a certificate anna: revoke it" in refusal(deployment, *create, "anna", "--generate")
    assert "is made from what you type: " in refusal(deployment, "secrets", "set", "admin_certificate_anna")
    assert "did you mean anna?" in refusal(deployment, "admin", "certificate", "revoke", "ana", "--yes")
    assert "give --yes" in refusal(deployment, "admin", "certificate", "revoke", "anna")
    assert deployment.manage("admin", "certificate", "revoke", "anna", "--yes").returncode == 0
    assert deployment.manage("admin", "certificate", "list", "--json").stdout == "[]\n"
    assert "anna.p12 is there already" in refusal(deployment, *create, "anna", "--generate")


def door(chosen: Settings) -> str:
    """The site for whoever comes through a tunnel."""
    content, _ = render("caddy/Caddyfile.j2", chosen.view(Caddy).values())
    return content.partition("\nhttp://admin.x.test.localhost:8450 {")[2].partition("\n}\n")[0]
