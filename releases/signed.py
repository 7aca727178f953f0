"""The OpenPGP signature of a first download, checked by Debian's gpgv."""

import base64
import binascii
import io
import subprocess
import tempfile
from pathlib import Path

from releases import Signature
from releases.download import DownloadError, Timeouts, download

# Bytes that a signature, and keys, have at most.
LIMIT = 1 << 20


class NotSigned(Exception):
    """Why a file was not recognised as its authors', as the end of a sentence."""


def check(signature: Signature, file: Path, timeouts: Timeouts) -> None:
    """Raises NotSigned if the file is not signed by that key, or if this cannot be checked."""
    armour, keys = (_downloaded(url, timeouts) for url in (signature.url, signature.key_url))
    with tempfile.TemporaryDirectory(prefix="matrix-metal-") as directory:
        ring, detached = Path(directory, "keys.gpg"), Path(directory, "signature")
        try:
            ring.write_bytes(_dearmoured(keys))
        except ValueError:
            raise NotSigned(f"{signature.key_url} has no OpenPGP key") from None
        detached.write_bytes(armour)
        command = ["gpgv", "--homedir", directory, "--status-fd", "1", "--keyring", str(ring), str(detached), str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
        except FileNotFoundError:
            raise NotSigned("gpgv is not installed on this computer: `apt install gpgv`") from None
    told = [line.removeprefix("[GNUPG:] ").split() for line in done.stdout.splitlines()]
    signers = {words[1] for words in told if words[0] == "VALIDSIG"}
    if done.returncode == 0 and signers == {signature.fingerprint}:
        return
    if any(words[0] == "BADSIG" for words in told):
        raise NotSigned(f"the signature {signature.url} is not of this file")
    others = signers or {words[1] for words in told if words[0] in ("ERRSIG", "EXPKEYSIG", "REVKEYSIG")}
    if not others:
        raise NotSigned(f"{signature.url} is signed in a way that gpgv does not understand")
    raise NotSigned(f"it is signed by the key {', '.join(sorted(others))}, not by {signature.fingerprint}")


def _downloaded(url: str, timeouts: Timeouts) -> bytes:
    text = io.BytesIO()
    try:
        download(url, text, timeouts, limit=LIMIT)
    except DownloadError as error:
        raise NotSigned(f"{url}: {error}") from error
    return text.getvalue()


def _dearmoured(armour: bytes) -> bytes:
    """The keys in ASCII armour (RFC 9580, 6.2), as gpgv reads them. Raises ValueError if there are none."""
    found, inside = [], False
    block: list[str] = []
    for line in armour.decode("ascii", "replace").splitlines():
        line = line.strip()
        if line == "-----BEGIN PGP PUBLIC KEY BLOCK-----":
            inside, block = True, []
        elif line == "-----END PGP PUBLIC KEY BLOCK-----" and inside:
            inside = False
            # Before an empty line are headers; a line that begins with = is a checksum.
            text = [each for each in (block[block.index("") + 1 :] if "" in block else block) if each[:1] != "="]
            try:
                found.append(base64.b64decode("".join(text), validate=True))
            except binascii.Error as error:
                raise ValueError from error
        elif inside:
            block.append(line)
    if not found:
        raise ValueError
    return b"".join(found)
