"""The throw-away host of `make demo`."""

from demo.programs import found as _found
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

# Each role is a group; `make demo` has looked whether its program can be had.
globals().update({_role.name: [_machine] for _role in _found().played})
