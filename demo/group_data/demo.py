"""The throw-away host of `make demo`: names and addresses that exist only on this computer."""

from demo.programs import found as _found
from tests.testbed import Testbed

server_name = "demo.test"
admin_email = "admin@demo.test"

# Nobody issues certificates for names that only this computer knows.
tls = "internal"

# Throw-away hosts have private addresses, and the identity server has to reach the homeserver.
private_networks = [str(Testbed().network.subnet), str(Testbed().network.subnet6)]

# Whoever tries it signs up. Only this computer reaches it.
registration = "open"
registration_unprotected = True

# The programs that were given to `make demo`, which tells how to do that if a release page cannot be reached.
globals().update(_found().given)
