"""`manage.py NAME secrets rotate`: everybody stays logged in, and credentials for calls stay good."""

import hashlib

import pytest

from tests.conftest import Deployed
from tests.e2e.client import Account, Outside, expect_json
from tests.protocols.turn import Credentials, RefusedError, relay
from vault import Vault

pytestmark = [
    pytest.mark.role("coturn", "synapse"),
    pytest.mark.parametrize("deployed", ["trixie", "bookworm"], ids=["debian13", "debian12"], indirect=True),
]
TRANSPORTS = ("udp", "tls")


def credentials_of(outside: Outside, account: Account) -> Credentials:
    """What a client gets at the beginning of a call."""
    with outside.http() as http:
        url = outside.url("matrix", "/_matrix/client/v3/voip/turnServer")
        answer = expect_json(http.get(url, headers=account.authorization))
    return Credentials(answer["username"], answer["password"])


def allocate(outside: Outside, credentials: Credentials, transport: str) -> None:
    context, name = outside.context(), f"turn.{outside.server_name}"
    with relay(outside.host.address, transport, credentials, context=context, name=name) as client:
        client.allocate()


def digests(deployed: Deployed) -> dict[str, str]:
    vault = Vault.open(deployed.deployment.vault)
    return {name: hashlib.sha256(vault.get(name).reveal().encode()).hexdigest() for name in vault.rotatable()}


@pytest.mark.once("debian13")
def test_rotation_of_everything(deployed: Deployed, outside: Outside, alice: Account) -> None:
    before, old = digests(deployed), credentials_of(outside, alice)

    asked = deployed.deployment.manage("secrets", "rotate", "--all", stdin="n\n")
    assert asked.returncode == 1 and digests(deployed) == before
    assert "turn_shared_secret: coturn and LiveKit restart" in asked.stderr
    assert "is accepted for 48 hours more" in asked.stderr

    done = deployed.deployment.manage("secrets", "rotate", "--all", "--yes")
    assert done.returncode == 0, done.stderr
    after = digests(deployed)
    assert set(before) == set(after) and not set(before.values()) & set(after.values())
    assert {"turn_shared_secret", "synapse_macaroon_secret_key", "livekit_secret"} <= set(after)
    assert "sydent_signing_key" not in after

    # Alice is still logged in, and gets credentials that are signed with the new secret.
    new = credentials_of(outside, alice)
    secret = Vault.open(deployed.deployment.vault).get("turn_shared_secret").reveal()
    assert Credentials.signed(new.username, secret) == new
    assert Credentials.signed(old.username, secret) != old
    for transport in TRANSPORTS:
        allocate(outside, new, transport)
        # Those that she had before are good as well.
        allocate(outside, old, transport)
    assert deployed.deployment.run("-y").changed == []


@pytest.mark.once("debian13")
def test_a_secret_that_somebody_knows_is_refused_at_once(deployed: Deployed, outside: Outside, alice: Account) -> None:
    old = credentials_of(outside, alice)
    done = deployed.deployment.manage("secrets", "rotate", "turn_shared_secret", "--at-once", "--yes")
    assert done.returncode == 0, done.stderr
    for transport in TRANSPORTS:
        allocate(outside, credentials_of(outside, alice), transport)
        with pytest.raises(RefusedError) as refused:
            allocate(outside, old, transport)
        assert refused.value.code == 401


@pytest.mark.once("debian13")
def test_a_rotation_that_is_interrupted_is_completed_by_a_deploy(
    deployed: Deployed, outside: Outside, alice: Account
) -> None:
    """The vault is written first: what comes after may be killed."""
    old = credentials_of(outside, alice)
    done = deployed.deployment.manage("secrets", "rotate", "turn_shared_secret", "--no-deploy", "--yes")
    assert done.returncode == 0 and "Now run: pyinfra " in done.stdout, done.stderr
    allocate(outside, credentials_of(outside, alice), "udp")
    assert "Configure coturn" in deployed.deployment.run("-y").changed
    for credentials in (old, credentials_of(outside, alice)):
        allocate(outside, credentials, "udp")
