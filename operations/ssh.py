"""How the SSH connection is made, and how it is noticed that nobody is at its other end any more."""

import socket
import threading
from typing import Any

from paramiko import Channel, SSHException, Transport

# Seconds from one question to the next, and how long an answer may take: together less than a minute.
EVERY, PATIENCE = 10, 40


class Watched(Transport):
    """Asks the other end, as OpenSSH does (ServerAliveInterval), and closes itself when there is no answer.

    paramiko's own keepalive expects none: a machine that is cut off is waited for until TCP gives up, a quarter of an hour,
    and behind a jump host for ever.
    """

    # Why it was closed.
    silent = ""

    def start_client(self, *arguments: Any, **named: Any) -> None:
        super().start_client(*arguments, **named)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        rest = threading.Event()
        while self.is_active():
            # Before the login sshd answers no such question, and paramiko has a time limit of its own.
            if self.is_authenticated():
                self._ask()
            rest.wait(EVERY)

    def _ask(self) -> None:
        patience = threading.Timer(PATIENCE, self._give_up)
        patience.daemon = True
        patience.start()
        try:
            self.global_request("keepalive@openssh.com", wait=True)
        except (OSError, SSHException):
            pass  # closed meanwhile
        finally:
            patience.cancel()

    def _send_user_message(self, data: Any) -> None:
        """What is sent when it was closed fails as SSH does: pyinfra takes paramiko's EOFError for a mistake of its own."""
        try:
            super()._send_user_message(data)  # type: ignore[misc]
        except EOFError:
            raise SSHException(self.silent or "the connection was cut") from None

    def _give_up(self) -> None:
        if self.is_active():
            self.silent = f"the machine has not answered for {PATIENCE} s"
            self.close()


def watched(sock: Any, **kwargs: Any) -> Watched:
    """paramiko's Transport, watched, and with TCP_NODELAY: small packets are sent at once, not kept back for 40 ms.

    Through a jump host, the connection to it is the one that counts. A proxy command is no TCP socket and is left as it is.
    """
    inner = sock
    while isinstance(inner, Channel):
        inner = inner.get_transport().sock
    if isinstance(inner, socket.socket):
        inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Watched(sock, **kwargs)
