"""The throw-away host of `make demo`."""

from pathlib import Path

from roles import ROLES
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

# `make demo` makes such a file for a role whose program it could not get. Each role is a group.
_cache = Path(__file__).parent.parent / ".cache"
globals().update({_role: [_machine] for _role in ROLES if not (_cache / f"demo-without-{_role}").exists()})
