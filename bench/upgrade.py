"""What clients notice of an upgrade of Synapse, and of one that does not come up and is put back.

Some clients send requests of every kind meanwhile, as in tests/e2e/test_upgrade.py; those that only wait for news are not counted
as slow. The version before answers again when the longest request does.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.figures import Figure
from bench.trial import load, say
from tests.deployment import ROOT, Deployment
from tests.e2e.client import Outside, new_user
from tests.e2e.load import during, room_of
from tests.e2e.older import OLDER, broken_checkout, older_checkout
from tests.testbed import Host


def measure(host: Host, deployment: Deployment) -> Iterator[Figure]:
    """host: one with every role, of which the deployment is."""
    with TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        older = older_checkout(directory)
        broken = broken_checkout(older, directory)
        outside = Outside(host, directory)
        user = new_user(outside, "upgrade")
        room = room_of(host, outside, user)
        try:
            deployment.root = broken
            # What takes long, to build it, goes on beside the old version.
            deployment.run("-y", check=False)
            asked = ("-y", "--data", f"try_again={OLDER}")
            failed = during(outside, user, room, lambda: deployment.run(*asked, check=False))
            deployment.root = older
            deployment.run("-y")
            deployment.root = ROOT
            done = during(outside, user, room, lambda: deployment.run("-y"))
        finally:
            deployment.root = ROOT
    for what, seen in (("upgrade of Synapse", done), ("upgrade of Synapse that is put back", failed)):
        yield Figure(f"{what}: longest request", [seen.longest], "s")
        yield Figure(f"{what}: failed requests", [float(len(seen.failed))])
    say(f"upgrades measured; {load()}")
