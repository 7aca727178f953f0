"""The SSH connection: how it is made, and how it notices that the machine is gone."""

import socket
import threading
from typing import Any

from paramiko import Channel, SSHException, Transport

# Seconds from one keepalive to the next, and how long an answer may take: together less than a minute.
INTERVAL, TIMEOUT = 10, 40


class KeepaliveTransport(Transport):
    """Sends keepalives that ask for an answer, as OpenSSH does (ServerAliveInterval), and closes itself when none comes.

    paramiko's own keepalive asks for no answer: it waits for a machine that is cut off until TCP gives up, a quarter of an
    hour, and behind a jump host for ever.
    """

    # Why it closed itself.
    close_reason = ""

    def start_client(self, *arguments: Any, **named: Any) -> None:
        super().start_client(*arguments, **named)
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def _keep_alive(self) -> None:
        pause = threading.Event()
        while self.is_active():
            # Before the login, sshd answers no keepalive, and paramiko has a time limit of its own.
            if self.is_authenticated():
                self._send_keepalive()
            pause.wait(INTERVAL)

    def _send_keepalive(self) -> None:
        timer = threading.Timer(TIMEOUT, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            self.global_request("keepalive@openssh.com", wait=True)
        except (OSError, SSHException):
            pass  # closed meanwhile
        finally:
            timer.cancel()

    def _send_user_message(self, data: Any) -> None:
        """Sending on a closed connection raises SSHException: pyinfra takes paramiko's EOFError for a bug of its own."""
        try:
            super()._send_user_message(data)  # type: ignore[misc]
        except EOFError:
            raise SSHException(self.close_reason or "the connection was cut") from None

    def _give_up(self) -> None:
        if self.is_active():
            self.close_reason = f"the machine has not answered for {TIMEOUT} s"
            self.close()


def keepalive_transport(sock: Any, **kwargs: Any) -> KeepaliveTransport:
    """A KeepaliveTransport with TCP_NODELAY: small packets are sent at once, not delayed by 40 ms.

    Behind a jump host, it is set on the connection to the jump host. A proxy command is no TCP socket and is left as it is.
    """
    inner = sock
    while isinstance(inner, Channel):
        inner = inner.get_transport().sock
    if isinstance(inner, socket.socket):
        inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return KeepaliveTransport(sock, **kwargs)
