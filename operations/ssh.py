"""How the SSH connection is made."""

import socket
from typing import Any

from paramiko import Transport


def low_latency(sock: Any, **kwargs: Any) -> Transport:
    """paramiko's Transport with TCP_NODELAY: small packets are sent at once, not held back for 40 ms.

    A connection through a proxy command is no TCP socket and is left as it is.
    """
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Transport(sock, **kwargs)
