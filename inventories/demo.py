"""The throw-away host of `make demo`."""

import os

from tests.testbed import Testbed

_host = Testbed().get("demo")
_machine = (
    "demo",
    {
        "ssh_hostname": _host.address,
        "ssh_user": "root",
        "ssh_key": str(_host.ssh_key),
        "ssh_known_hosts_file": str(_host.known_hosts),
    },
)

postgres = [_machine]
synapse = [_machine]
sydent = [_machine]
caddy = [_machine]
coturn = [_machine]
sliding_sync = [] if os.environ.get("DEMO_WITHOUT") == "sliding_sync" else [_machine]
