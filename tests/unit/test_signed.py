"""The signature of a first download: made by GnuPG, checked by gpgv."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from releases import Signature
from releases.download import Timeouts
from releases.signed import NotSigned, check
from tests.standin.archives import Signer
from tests.standin.release_server import ReleaseServer


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Signer, Signer]]:
    """Theirs, and somebody else's."""
    directory = tmp_path_factory.mktemp("signers")
    both = Signer(directory, "Theirs"), Signer(directory, "Else")
    yield both
    for signer in both:
        signer.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.tar.gz"
    path.write_bytes(b"content")
    return path


def signature(server: ReleaseServer, signer: Signer) -> Signature:
    return Signature(f"{server.url}/file.asc", f"{server.url}/keys.asc", signer.fingerprint)


def test_a_file_that_they_have_signed_is_theirs(
    server: ReleaseServer, signers: tuple[Signer, Signer], file: Path
) -> None:
    """Also if other keys are beside the right one."""
    theirs, other = signers
    server.files |= {"file.asc": theirs.sign(file), "keys.asc": other.keys + theirs.keys}
    check(signature(server, theirs), file, Timeouts())


def test_what_others_have_signed_is_refused(server: ReleaseServer, signers: tuple[Signer, Signer], file: Path) -> None:
    theirs, other = signers
    wanted = signature(server, theirs)
    server.files |= {"file.asc": other.sign(file), "keys.asc": other.keys + theirs.keys}
    with pytest.raises(NotSigned, match=f"signed by the key {other.fingerprint}, not by {theirs.fingerprint}"):
        check(wanted, file, Timeouts())
    # Its key is not on the page.
    server.files["keys.asc"] = theirs.keys
    with pytest.raises(NotSigned, match=f"not by {theirs.fingerprint}"):
        check(wanted, file, Timeouts())


def test_another_file_is_refused(server: ReleaseServer, signers: tuple[Signer, Signer], file: Path) -> None:
    theirs, _ = signers
    server.files |= {"file.asc": theirs.sign(file), "keys.asc": theirs.keys}
    file.write_bytes(b"Content")
    with pytest.raises(NotSigned, match="is not of this file"):
        check(signature(server, theirs), file, Timeouts())


def test_what_cannot_be_checked_is_refused(
    server: ReleaseServer, signers: tuple[Signer, Signer], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, _ = signers
    wanted = signature(server, theirs)
    with pytest.raises(NotSigned, match=r"file\.asc: the server answered 404"):
        check(wanted, file, Timeouts())
    server.files |= {"file.asc": b"no signature", "keys.asc": theirs.keys}
    with pytest.raises(NotSigned, match="signed in a way that gpgv does not understand"):
        check(wanted, file, Timeouts())
    for keys in (b"<html>", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n???\n-----END PGP PUBLIC KEY BLOCK-----\n"):
        server.files["keys.asc"] = keys
        with pytest.raises(NotSigned, match=r"keys\.asc has no OpenPGP key"):
            check(wanted, file, Timeouts())
    server.files |= {"file.asc": theirs.sign(file), "keys.asc": theirs.keys}
    monkeypatch.setenv("PATH", str(file.parent))
    with pytest.raises(NotSigned, match="apt install gpgv"):
        check(wanted, file, Timeouts())
