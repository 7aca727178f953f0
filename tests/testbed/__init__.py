"""Throw-away Debian hosts: real systemd, reached over real SSH.

bed = Testbed()
host = bed.up("demo")
host.run("apt-get update")
host.down()
"""

from .bed import CommandFailed, Host, Testbed
from .roots import RELEASES
from .tools import TestbedError

__all__ = ["RELEASES", "CommandFailed", "Host", "Testbed", "TestbedError"]
