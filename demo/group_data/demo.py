"""The throw-away host of `make demo`: names and addresses that exist only on this computer."""

from pathlib import Path

from tests.testbed import Testbed

server_name = "demo.test"
admin_email = "admin@demo.test"

# Nobody issues certificates for names that only this computer knows.
tls = "internal"

# Throw-away hosts have private addresses, and the identity server has to reach the homeserver.
private_networks = [str(Testbed().network.subnet), str(Testbed().network.subnet6)]

# The program that was given to `make demo`, which tells how to do that if the release page cannot be reached.
_given = Path(__file__).parent.parent.parent / ".cache" / "demo-sliding-sync"
sliding_sync_binary = _given.read_text() if _given.exists() else None
