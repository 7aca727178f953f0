"""Every secret of one deployment, encrypted in `inventories/<name>.vault`.

    python manage.py prod secrets show                   names, meanings, whether set; never values
    python manage.py prod secrets show smtp_password     one value
    python manage.py prod secrets set smtp_password      asked for without echo, or the first line of standard input
    python manage.py prod secrets rotate turn_shared_secret

`python vault.py show prod` and so on do the same, without reading the inventory; a path that ends in .vault may be given.

The key is in the environment, `MATRIX_VAULT_KEY`, or else in `inventories/<name>.key`, made with the vault.
"""

import argparse
import base64
import contextlib
import difflib
import getpass
import json
import os
import re
import secrets
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import whole_file
from roles import VaultEntry, entries

KEY_VARIABLE = "MATRIX_VAULT_KEY"
MAKE_KEY = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
FORMAT = 1
TOO_MANY = "too many arguments; a value is asked for, because arguments end up in the shell's history"

Command = Literal["show", "set", "rotate"]

SECRETS: dict[str, VaultEntry] = {entry.name: entry for entry in entries()}


class VaultError(Exception):
    """What is wrong and what to do about it, in one line without a secret in it."""


class Secret:
    """A string that is shown only by `reveal()`: not in messages, templates, debug output, dumps or pickles."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "*****"

    def __format__(self, spec: str) -> str:
        return "*****"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __getstate__(self) -> NoReturn:  # every pickle protocol comes through here
        raise TypeError("a Secret cannot be pickled")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:  # settings are copied; without this, by pickling
        return self


class Previous(NamedTuple):
    """A secret that was replaced, and is accepted beside the new one until then (seconds since the epoch)."""

    name: str
    secret: Secret
    until: float


class Vault:
    """The secrets of one deployment. Nothing is written, not even a new key, before `save()`, so a dry run changes nothing."""

    def __init__(
        self,
        path: Path,
        key: MultiFernet | None,
        stored: bytes | None,
        id: str,
        values: dict[str, Secret],
        previous: Sequence[Previous] = (),
    ):
        self.path = path
        self.id = id  # random, not secret: machines remember it, so that a different vault is recognised
        self._key = key
        self._stored = stored  # the file as it was last read or written
        self._values = values
        self._saved = dict(values)
        self._previous = list(previous)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The vault in this file, or a new one where there is no file; VaultError when it cannot be read."""
        with _os_errors(path):
            stored = path.read_bytes() if path.exists() else None
            key, where = _find_key(path)
        if stored is None:
            return cls(path, key, None, secrets.token_hex(8), {})
        if key is None:
            raise VaultError(f"{path} has no key: {where}; restore the key that was made with it")
        if not re.fullmatch(rb"gAAAA[\w-]+={0,2}\s*", stored):  # how a Fernet token looks until the year 2106
            raise VaultError(f"{path} is damaged: restore it from version control or a backup")
        try:
            document = json.loads(key.decrypt(stored.strip()))
        except InvalidToken:
            raise VaultError(
                f"{path} does not open with the key in {where}: the key of another vault, or damaged"
            ) from None
        if document["format"] != FORMAT:
            raise VaultError(f"{path} was written by a newer matrix-metal: update this one")
        values = {name: Secret(value) for name, value in document["secrets"].items()}
        previous = [Previous(name, Secret(value), until) for name, value, until in document.get("previous", ())]
        return cls(path, key, stored, document["id"], values, previous)

    @property
    def unsaved(self) -> bool:
        return self._stored is None or self._values != self._saved

    def has(self, name: str) -> bool:
        _known(name)
        return name in self._values

    def generated(self, name: str) -> bool:
        """Whether the secret was made by this run, and is not saved yet."""
        return self.has(name) and name not in self._saved

    def names(self) -> list[str]:
        """The secrets that it can have, and of those with a name of the administrator's, the ones that it does."""
        return [name for name in dict.fromkeys([*SECRETS, *self._values]) if not name.endswith("*")]

    def get(self, name: str) -> Secret:
        """The secret. Where it is missing, a generated one is made, in memory, and a given one is a VaultError."""
        known = _known(name)
        if name not in self._values:
            if known.kind == "given":
                raise VaultError(f"{name} is not set in {self.path}: {self.command('set', name)}")
            self._values[name] = _generate(known.kind)
        return self._values[name]

    def set(self, name: str, value: str, force: bool = False) -> None:
        """Set a value. A generated secret can be set, too: so the secrets of an older server are imported."""
        known, secret = _known(name), Secret(value)
        if not value:
            raise VaultError(f"{name}: the value is empty")
        # Cc: control characters, Zl and Zp: line separators, Cs: what was not UTF-8. Files take one line of text.
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in value):
            raise VaultError(f"{name}: the value must be one line of text, without control characters")
        if known.kind != "given" and value != value.strip():
            raise VaultError(
                f"{name}: the value must not begin or end with a space: programs that share it would strip it"
            )
        if known.kind == "ed25519" and not re.fullmatch(r"ed25519 \w+ [A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]", value):
            raise VaultError(f"{name}: the value must look like: ed25519 0 <32 bytes in base64, without padding>")
        if known.kind == "rsa" and not _is_rsa_key(value):
            raise VaultError(f"{name}: the value must be an RSA key of at least 2048 bits, as base64 of PKCS #8 in DER")
        if self._values.get(name) != secret:
            self._may_change(name, "set", force)
            self._values[name] = secret

    def remove(self, name: str) -> None:
        """Forget one that was given and that the administrator has named."""
        _known(name)
        del self._values[name]

    def rotate(self, name: str, force: bool = False, at_once: bool = False) -> None:
        """Put a new generated value in the place of the old one. at_once: no old one is accepted beside it."""
        known = _known(name)
        if known.kind == "given":
            raise VaultError(f"{name} is not generated but given: {self.command('set', name)}")
        self._may_change(name, "rotate", force)
        old = self._values.get(name)
        if at_once:
            self._previous = [each for each in self._previous if each.name != name]
        elif old and known.overlap:
            self._previous.insert(0, Previous(name, old, time.time() + known.overlap * 3600))
        self._values[name] = _generate(known.kind)

    def previous(self, name: str) -> tuple[Secret, ...]:
        """The secrets that are still accepted beside this one, the latest first."""
        return tuple(each.secret for each in self._previous if each.name == name and each.until > time.time())

    def rekey(self) -> None:
        """Give the vault another key. Whenever this is interrupted, the key file opens the vault."""
        file = self.path.with_suffix(".key")
        if KEY_VARIABLE in os.environ:
            raise VaultError(
                f"the key is in {KEY_VARIABLE}: write it into {file}, take it out of the environment, try again"
            )
        if self._stored is None:
            raise VaultError(f"there is no {self.path} yet: the first deploy makes it, and its key")
        new = Fernet.generate_key()
        with _os_errors(file):
            old = file.read_bytes().split()
            whole_file.replace(file, b"\n".join([new, *old]) + b"\n")
            self._key, _ = _find_key(self.path)
            self.save(again=True)
            whole_file.replace(file, new + b"\n")

    def save(self, again: bool = False) -> None:
        """Write the vault, whole or not at all, if something changed, or again; first its key, if it has none."""
        if not (self.unsaved or again):
            return
        with _os_errors(self.path), whole_file.locked(self.path.parent):
            if (self.path.read_bytes() if self.path.exists() else None) != self._stored:
                raise VaultError(f"{self.path} was changed by someone else in the meantime: run the same command again")
            key = self._key or _make_key(self.path)
            values = {name: secret.reveal() for name, secret in self._values.items()}
            previous = [(name, each.reveal(), until) for name, each, until in self._previous if until > time.time()]
            document = {"format": FORMAT, "id": self.id, "secrets": values, "previous": previous}
            token = key.encrypt(json.dumps(document).encode()) + b"\n"
            whole_file.replace(self.path, token)
        self._key, self._stored, self._saved = key, token, dict(self._values)

    def _may_change(self, name: str, verb: Command, force: bool) -> None:
        keep = _known(name).keep
        if keep and name in self._values and not force:
            command = f"{self.command(verb, name)} --force"
            raise VaultError(f"{name} must not change: {keep}; if that is what you want: {command}")

    def rotatable(self) -> list[str]:
        """The secrets that it has and that a rotation can replace: generated ones on which no other data depends."""
        return [
            name for name in self.names() if self.has(name) and not (_known(name).keep or _known(name).kind == "given")
        ]

    def command(self, verb: Command, name: str = "") -> str:
        """The command line that shows, sets or rotates a secret of this vault."""
        if verb == "set" and name and (known := _known(name)).command:
            return f"python manage.py {self.path.stem} {known.command}"
        if self.path.parent.name == "inventories" and self.path.with_suffix(".py").exists():
            return f"python manage.py {self.path.stem} secrets {verb} {name}".rstrip()
        return f"python vault.py {verb} {self.path} {name}".rstrip()


class WithoutSecrets(Vault):
    """Used instead of the vault by what only looks: every secret is empty, so that views with secrets can be derived."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull), None, None, "", {})

    def get(self, name: str) -> Secret:
        return Secret("")


def path_for(deployment: str, directory: Path) -> Path:
    """`prod` is `<directory>/prod.vault`; a path that ends in .vault is taken as it is."""
    if deployment.endswith(".vault"):
        return Path(deployment)
    if not re.fullmatch(r"\w[\w.-]*", deployment):
        raise VaultError(f"{deployment!r} is neither a deployment's name, like prod, nor a path that ends in .vault")
    return directory / f"{deployment}.vault"


def entry_of(name: str) -> VaultEntry:
    """The record of a secret. Raises VaultError."""
    return _known(name)


def _known(name: str) -> VaultEntry:
    for entry in SECRETS.values():
        if name == entry.name or (entry.name.endswith("*") and re.fullmatch(f"{entry.name[:-1]}[a-z][a-z0-9-]*", name)):
            return entry._replace(name=name)
    # A name that is similar to none may be a secret value in the wrong place: it is not repeated.
    if near := difflib.get_close_matches(name, SECRETS, n=1):
        raise VaultError(f"there is no secret named {name!r}: did you mean {near[0]}?")
    raise VaultError(f"there is no secret of that name: there are {', '.join(SECRETS)}")


def _is_rsa_key(value: str) -> bool:
    try:
        key = serialization.load_der_private_key(base64.b64decode(value, validate=True), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048


def pem(key: Secret) -> Secret:
    """A secret of kind "rsa" as the file that programs read."""
    lines = textwrap.wrap(key.reveal(), 64)
    return Secret("\n".join(("-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----", "")))


def _generate(kind: str) -> Secret:
    if kind == "rsa":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        der = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Secret(base64.b64encode(der).decode())
    if kind == "ed25519":  # as signedjson writes it, with the key's version, which is 0 in every Sydent
        return Secret("ed25519 0 " + base64.b64encode(os.urandom(32)).decode().rstrip("="))
    return Secret(secrets.token_hex(32) if kind == "hex" else secrets.token_urlsafe(48))


def _find_key(path: Path) -> tuple[MultiFernet | None, str]:
    """The key of this vault, and where it was found or, if there is none, where it was looked for."""
    file = path.with_suffix(".key")
    if KEY_VARIABLE in os.environ:
        where, advice = f"{KEY_VARIABLE} (which is used instead of {file})", f"this makes one: {MAKE_KEY}"
        text = os.environ[KEY_VARIABLE].encode(errors="replace")
    elif not file.exists():
        return None, f"{KEY_VARIABLE} is not set and {file} does not exist"
    elif file.stat().st_mode & 0o077:
        raise VaultError(f"{file} can be read by others than its owner: chmod 600 {file}")
    else:
        where, advice, text = str(file), f"restore the one that was made with {path.name}", file.read_bytes()
    try:
        # Two while the vault gets another key: the first writes.
        return MultiFernet([Fernet(each) for each in text.split()]), where
    except ValueError:
        raise VaultError(f"{where} is not a key; {advice}") from None


def _make_key(path: Path) -> MultiFernet:
    file = path.with_suffix(".key")
    # Linked rather than created and then filled: of two processes one makes the key, the other finds it whole.
    with whole_file.temporary(file, Fernet.generate_key() + b"\n") as temporary, contextlib.suppress(FileExistsError):
        file.hardlink_to(temporary)
    key, where = _find_key(path)
    if key is None:
        raise VaultError(f"{file} cannot be made: {where}")
    return key


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VaultError(f"{error.filename or path}: {error.strerror}") from None


def _show(vault: Vault, name: str | None) -> None:
    if name is None:
        for each in vault.names():
            known = _known(each)
            print(f"{each:36}{known.kind:9}{'set' if vault.has(each) else 'not set':9}{known.meaning}")
    elif not vault.has(name) and _known(name).kind != "given":
        raise VaultError(f"{name} is not set in {vault.path} yet: the first deployment makes it")
    else:  # UTF-8 whatever the terminal's encoding: an encoding error would quote the value
        sys.stdout.buffer.write(vault.get(name).reveal().encode() + b"\n")


def _asked_for(name: str) -> str:
    _known(name)  # before the question, not after the answer
    if sys.stdin.isatty():
        return getpass.getpass(f"{name}: ")
    # The first line, because password managers print the password there and notes below it.
    line = sys.stdin.buffer.readline().decode(errors="surrogateescape")
    return line.removesuffix("\n").removesuffix("\r")


def run(command: Command, path: Path, inventory: Path, name: str | None, force: bool) -> None:
    """Do what a command line asks for. path: the vault. inventory: whose deployment it belongs to. Raises VaultError."""
    key_file = path.with_suffix(".key")
    vault = Vault.open(path)
    if command == "show":
        return _show(vault, name)
    if name is None:
        raise VaultError(f"which secret? {vault.command('show')} lists them")
    if command == "set" and entry_of(name).command:
        raise VaultError(f"{name} is made from what you type: {vault.command('set', name)}")
    if command == "set":
        vault.set(name, _asked_for(name), force)
    else:
        vault.rotate(name, force)
    had_key = key_file.exists()
    vault.save()
    if key_file.exists() and not had_key:
        print(f"Made {key_file}: keep a copy apart from the vault, which cannot be read without it.")
    print(f"{name} is in {path}. Now run: pyinfra {inventory} deploy.py")


def _run(command: Command, deployment: str, name: str | None, force: bool) -> None:
    path = path_for(deployment, Path("inventories"))
    inventory = path.with_suffix(".py")
    if not deployment.endswith(".vault") and not path.exists() and not inventory.exists():
        # A misspelt deployment would otherwise get a new vault and a new key.
        near = difflib.get_close_matches(deployment, [file.stem for file in path.parent.glob("*.py")], n=1)
        raise VaultError(f"there is no {inventory}" + (f": did you mean {near[0]}?" if near else ""))
    run(command, path, inventory, name, force)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("show", "set", "rotate"))
    parser.add_argument("deployment", help="prod means inventories/prod.vault; or a path that ends in .vault")
    parser.add_argument("name", nargs="?", help="of the secret")
    parser.add_argument("--force", action="store_true", help="set or rotate even what other data depends on")
    arguments, unexpected = parser.parse_known_args()
    try:
        if unexpected:  # not repeated: it may well be the value
            raise VaultError(TOO_MANY)
        _run(**vars(arguments))
    except VaultError as error:
        sys.exit(f"vault: {error}")
    except (KeyboardInterrupt, EOFError):
        sys.exit("vault: stopped, nothing was changed")


if __name__ == "__main__":
    main()
