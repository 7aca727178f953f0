"""The throw-away host of `make demo`: names and addresses that exist only on this computer."""

from pathlib import Path

from tests.testbed import Testbed

server_name = "demo.test"
admin_email = "admin@demo.test"

# Nobody issues certificates for names that only this computer knows.
tls = "internal"

# Throw-away hosts have private addresses, and the identity server has to reach the homeserver.
private_networks = [str(Testbed().network.subnet), str(Testbed().network.subnet6)]

# `make demo` says how to give it the program where its release page cannot be reached, and writes down which it was given.
_given = Path(__file__).parent.parent.parent / ".cache" / "demo-sliding-sync"
sliding_sync_binary = _given.read_text() if _given.exists() else None
