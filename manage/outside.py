"""What another homeserver gets from this one, asked from this computer, which is outside of its machines."""

import json
import socket
import ssl
import urllib.request
from typing import Any
from urllib.error import HTTPError

from roles import FEDERATION_PORT
from settings import Settings
from settings.synapse import Choices as Homeserver

TIMEOUT = 5


def federation_problem(settings: Settings | None) -> str:
    """Why another homeserver does not get the keys of this one, "" if it does. settings: None: it is not here.

    Also "" if this computer cannot tell: federation is off, the name has no address here, or the authority is a private one.
    """
    if not settings or not settings.section(Homeserver).federation or settings.private_authorities:
        return ""
    try:
        socket.getaddrinfo(settings.server_name, 443)
    except OSError:
        return ""
    return keys_problem(settings.server_name)


def keys_problem(server_name: str) -> str:
    """Why the keys of a homeserver are not to be had by its name, as the federation API says; "" if they are."""
    try:
        at = _get(f"https://{server_name}/.well-known/matrix/server").get(
            "m.server", f"{server_name}:{FEDERATION_PORT}"
        )
        url = f"https://{at}/_matrix/key/v2/server"
        found = _get(url)
    except (OSError, ValueError) as error:
        return str(error)
    if found.get("server_name") != server_name or not found.get("verify_keys"):
        return f"{url} has no signing keys of {server_name}"
    return ""


def homeserver_runs(name: str) -> bool:
    """Whether a homeserver answers clients at this name, with whatever certificate: False also if this computer cannot tell."""
    try:
        return bool(_get(f"https://{name}/_matrix/client/versions", ssl._create_unverified_context()).get("versions"))  # noqa: S323
    except (OSError, ValueError):
        return False


def _get(url: str, context: ssl.SSLContext | None = None) -> dict[str, Any]:
    """The JSON at an address. Raises OSError and ValueError, which name it. context: other than that of clients."""
    context = context or ssl.create_default_context()
    try:
        # Through the proxy of the environment, if there is one: without it, this computer may reach nothing.
        with urllib.request.urlopen(url, timeout=TIMEOUT, context=context) as answer:  # noqa: S310 - https
            found = json.load(answer)
    except HTTPError as error:
        raise OSError(f"{url} answers {error.code}") from None
    except OSError as error:
        raise OSError(f"{url}: {getattr(error, 'reason', None) or error}") from None
    except ValueError:
        raise ValueError(f"{url} is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{url} is not what it should be")
    return found
