"""The throw-away host of `make demo`."""

from pathlib import Path

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
# `make demo` makes this file if it could not get the program.
_without = Path(__file__).parent.parent / ".cache" / "demo-without-sliding-sync"
sliding_sync = [] if _without.exists() else [_machine]
