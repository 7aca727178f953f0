"""Downloads over https, through the proxy of the environment if there is one, with the system's certificate authorities."""

import hashlib
import socket
import ssl
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:  # its import takes a tenth of a second, and most runs download nothing
    import httpx

LIMIT = 1 << 30


class DownloadError(Exception):
    """Why a download failed; without the address."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for a connection, then for its TLS handshake, and for each piece of the answer."""

    connect: float = 15
    read: float = 60


def is_https(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and bool(parts.hostname)


def download(url: str, into: IO[bytes], timeouts: Timeouts, limit: int = LIMIT) -> str:
    """Write what the address serves; return its sha256.

    Raises DownloadError, and OSError if it cannot be written.
    """
    import httpx

    received, digest = 0, hashlib.sha256()
    expected: int | None = None
    try:
        with (
            httpx.Client(
                # httpx would use certifi's list, without authorities that the administrator added to the system's.
                verify=ssl.create_default_context(),
                timeout=httpx.Timeout(timeouts.read, connect=timeouts.connect),
                follow_redirects=True,
                event_hooks={"request": [_only_https]},
                # No compression in transit: the sha256 is that of the file itself.
                headers={"User-Agent": "matrix-metal", "Accept-Encoding": "identity"},
            ) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != 200:
                raise DownloadError(f"the server answered {response.status_code} {response.reason_phrase}")
            length = response.headers.get("Content-Length", "")
            expected = int(length) if length.isdigit() else None
            # Without a length, a complete file cannot be told from a truncated one.
            if expected is None and response.headers.get("Transfer-Encoding") != "chunked":
                raise DownloadError("the server does not say how long the file is")
            for chunk in response.iter_raw():
                received += len(chunk)
                if max(received, expected or 0) > limit:
                    raise DownloadError(f"it is larger than {limit >> 20} MiB")
                digest.update(chunk)
                into.write(chunk)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        of = f" of {expected}" if expected is not None else ""
        if received and not isinstance(error, httpx.TimeoutException):
            raise DownloadError(f"the connection ended after {received}{of} bytes") from error
        raise DownloadError(_reason(error, timeouts)) from error
    except (ValueError, ImportError) as error:  # an address of a kind that httpx does not know
        raise DownloadError(f"the proxy that the environment names cannot be used ({error})") from error
    return digest.hexdigest()


def _only_https(request: "httpx.Request") -> None:
    """Refuse redirects to anything but https. Others are followed, because release pages use them."""
    if not is_https(str(request.url)):
        raise DownloadError(f"it redirects to {request.url}, and only https:// is allowed")


def _reason(error: BaseException, timeouts: Timeouts) -> str:
    import httpx

    if isinstance(error, httpx.ConnectTimeout):
        return f"no answer within {timeouts.connect:g} s"
    if isinstance(error, httpx.TimeoutException):
        return f"nothing came for {timeouts.read:g} s"
    cause = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
    match cause:
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not trusted ({cause.verify_message})"
        case ssl.SSLError():
            return f"no TLS connection ({cause.reason or cause})"
        case socket.gaierror():
            return f"the name cannot be resolved ({cause.strerror})"
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionError():
            return "the server closed the connection"
        case OSError() if cause.strerror:
            return cause.strerror
    return str(error) or type(error).__name__
