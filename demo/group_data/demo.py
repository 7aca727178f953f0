"""The throw-away host of `make demo`: names and addresses that exist only on this computer."""

from pathlib import Path

from tests.testbed import Testbed

server_name = "demo.test"
admin_email = "admin@demo.test"

# Nobody issues certificates for names that only this computer knows.
tls = "internal"

# Throw-away hosts have private addresses, and the identity server has to reach the homeserver.
private_networks = [str(Testbed().network.subnet), str(Testbed().network.subnet6)]

# Files that were given to `make demo`, which tells how to do that if a release page cannot be reached.
_cache = Path(__file__).parent.parent.parent / ".cache"
for _setting in ("sliding_sync_binary", "livekit_archive", "lk_jwt_binary"):
    _given = _cache / f"demo-{_setting}"
    globals()[_setting] = _given.read_text() if _given.exists() else None
