"""What machines are asked with: run here, with openssl, and with a systemctl that says what it is told."""

import os
import pkgutil
import re
import shlex
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pyinfra.api.host import Host

import operations
from operations.files import Paths
from operations.look import Answers, Question, _ask_all, joined
from operations.shell import Fact, shell_file
from operations.units import Unit

NOW, DAY = datetime.now(UTC), timedelta(days=1)
KEY = ec.generate_private_key(ec.SECP256R1())


def signed(name: str, begin: datetime, end: datetime, *, authority: bool = False) -> bytes:
    """A certificate of the authority "authority.test", or that of the authority itself."""
    subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, "authority.test"))
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(KEY.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    builder = builder.add_extension(x509.BasicConstraints(authority, None), True)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


VALID = signed("x.test", NOW - DAY, NOW + DAY)
OTHER = signed("x.test", NOW - DAY, NOW + DAY)
EXPIRED_AUTHORITY = signed("authority.test", NOW - 2 * DAY, NOW - DAY, authority=True)


@contextmanager
def server(chain: bytes, directory: Path) -> Iterator[int]:
    """A server that presents this chain; its port."""
    path = directory / "chain.pem"
    key = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(chain + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("chain", "name", "file", "presented"),
    [
        (VALID, "x.test", None, True),
        (VALID, "y.test", None, False),
        (VALID, "x.test", VALID, True),
        (VALID, "x.test", OTHER, False),
        (VALID, "x.test", b"", False),
        (signed("*.y.test", NOW - DAY, NOW + DAY), "x.y.test", None, True),
        (signed("x.test", NOW - 2 * DAY, NOW - DAY), "x.test", None, False),
        (signed("x.test", NOW + DAY, NOW + 2 * DAY), "x.test", None, False),
        # Old roots are still sent long after they have expired: who asks trusts another one.
        (VALID + EXPIRED_AUTHORITY, "x.test", None, True),
    ],
    ids=["valid", "name", "file", "other file", "no file", "wildcard", "expired", "not yet", "old root"],
)
def test_a_certificate_must_be_for_the_name_valid_and_that_of_the_file(
    chain: bytes, name: str, file: bytes | None, presented: bool, tmp_path: Path
) -> None:
    path = "-"
    if file is not None:
        (tmp_path / "file").write_bytes(file)
        path = str(tmp_path / "file")
    with server(chain, tmp_path) as port:
        program = f"{shell_file('certificates')}presents {name} {port} {path} -"
        done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=20)
    assert (done.returncode == 0) == presented and not done.stderr


def test_nobody_presents_a_certificate() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = subprocess.run(
        ["sh", "-c", f"{shell_file('certificates')}presents x.test {port} - -"], capture_output=True, timeout=20
    )
    assert done.returncode != 0


def test_all_paths_are_asked_about_in_one_question() -> None:
    """Two processes for all files of a machine, and not for each operation."""
    first, second = (Question(Paths, Paths().question(paths), paths=paths) for paths in (("/a", "/b"), ("/b", "/c d")))
    other = Question(Unit, "true", "a.service")
    found = joined([first, other, second])
    assert found[first] is found[second] and found[other] is other
    assert found[first].paths == ("/a", "/b", "/c d")
    assert found[first].shell.count("'/c d'") == 1, "a name is sent once"


def test_each_question_about_paths_gets_its_own_part_of_the_answer(tmp_path: Path) -> None:
    """That nothing is at its paths, though something is at those of others."""
    there, missing = str(tmp_path), f"{tmp_path}/missing"
    first, second = (Question(Paths, Paths().question((path,)), paths=(path,)) for path in (there, missing))
    program = Answers().question(list(dict.fromkeys(joined([first, second]).values())))
    done = subprocess.run(
        ["sh", "-c", program.replace("-p /run", f"-p {tmp_path}")], capture_output=True, text=True, check=True
    )
    host = SimpleNamespace(get_fact=lambda *_, **__: Answers().answer(done.stdout.splitlines()))
    found = _ask_all(cast(Host, host), [first, second])
    assert list(found[first]) == [there] and found[second] == {}


SHOWN = {
    "a.service": "Id=a.service\nLoadState=loaded\nActiveState=active\nFragmentPath=/dev/null\nDropInPaths=\n"
    "ExecMainStartTimestamp=Fri 2026-11-27 01:00:00.000001 UTC\n",
    "aa.service": "Id=aa.service\nLoadState=loaded\nActiveState=failed\nFragmentPath=/dev/full\nDropInPaths=/dev/zero\n",
    "b.service": "ExecMainStartTimestamp=\nId=b.service\nLoadState=not-found\nActiveState=inactive\nFragmentPath=\n",
}


def test_systemd_is_asked_once_for_all_units(tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    answers = "".join(f"  {name}) printf %s {shlex.quote(text)};;\n" for name, text in SHOWN.items())
    program.write_text(
        f'#!/bin/sh\necho >>{tmp_path}/calls\nwhile [ "$1" != -- ]; do shift; done; shift\n'
        f"first=yes\nfor unit; do [ $first ] || echo; first=\ncase $unit in\n{answers}esac; done\n"
    )
    program.chmod(0o755)
    questions = [
        Question(
            Unit, Unit().question(unit=name, reads=["/dev/tty"], ready=f"[ $unit = {name} ]"), name, (), ("/dev/tty",)
        )
        for name in SHOWN
    ]
    text = Answers().question(questions).replace("-p /run", f"-p {tmp_path}")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", text], env=environment, capture_output=True, text=True, check=True)
    found = {
        name: Unit().answer(Answers().answer(done.stdout.splitlines())[number]) for number, name in enumerate(SHOWN)
    }
    assert {name: (state.active, state.ready) for name, state in found.items()} == {
        "a.service": ("active", True),
        "aa.service": ("failed", False),
        "b.service": ("inactive", False),
    }
    assert {name: [path for path, _ in state.written] for name, state in found.items()} == {
        "a.service": ["/dev/tty", "/dev/null"],
        "aa.service": ["/dev/tty", "/dev/full", "/dev/zero"],
        "b.service": ["/dev/tty"],
    }
    assert found["a.service"].started and not found["b.service"].started
    assert (tmp_path / "calls").read_text().count("\n") == 1


def test_files_that_are_read_together_define_no_function_twice() -> None:
    """Those of all questions are in one command: the second definition would be that of both."""
    for module in pkgutil.iter_modules(operations.__path__):
        import_module(f"operations.{module.name}")
    facts, files = list(Fact.__subclasses__()), set[str]()
    while facts:
        fact = facts.pop()
        facts += fact.__subclasses__()
        files |= {fact.functions} - {""}
    assert {"release", "unit"} <= files
    defined = [name for file in files for name in re.findall(r"^(\w+)\(\)", shell_file(file), re.MULTILINE)]
    assert sorted(defined) == sorted(set(defined))
