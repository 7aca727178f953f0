"""The vault: its files, its messages, and that values are never shown by accident."""

import contextlib
import copy
import json
import logging
import os
import pickle
import pprint
import pty
import stat
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

import vault
import whole_file
from vault import SECRETS, Secret, Vault, VaultError, path_for

PROGRAM = Path(vault.__file__)
GENERATED = [name for name, known in SECRETS.items() if known.kind != "given"]
AWKWARD = "".join(map(chr, range(0x20, 0x7F))) + " äß€漢字🗝 \\n ${x} %(y)s {{ z }} '\"  "


@pytest.fixture(autouse=True)
def no_key_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MATRIX_VAULT_KEY", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    inventories = tmp_path / "inventories"
    inventories.mkdir()
    (inventories / "prod.py").touch()
    return inventories / "prod.vault"


@pytest.fixture
def saved(path: Path) -> Path:
    made = Vault.open(path)
    for name in GENERATED:
        made.get(name)
    made.set("smtp_password", "hunter2")
    made.save()
    return path


def run(path: Path, *arguments: str, typed: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        cwd=path.parent.parent,
        input=typed,
        capture_output=True,
        env=os.environ | environment,
        timeout=60,
    )


def complaint(result: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on standard error of a command that failed."""
    assert (result.returncode, result.stdout) == (1, b"")
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


# What is shown of a Secret


def test_a_secret_is_not_shown_by_accident() -> None:
    secret = Secret("hunter2")
    record = logging.LogRecord("x", 0, "x", 0, "%s %r", (secret, secret), None)
    shown = [str(secret), repr(secret), f"{secret} {secret!r} {secret:>30}", "{:s}".format(secret), "%s" % secret]  # noqa: UP031, UP032
    shown += [pprint.pformat({"a": [secret]}), json.dumps([secret], default=str), record.getMessage()]
    for text in shown:
        assert "hunter2" not in text
        assert "*****" in text
    assert secret.reveal() == "hunter2"


def test_a_secret_is_not_serialised() -> None:
    secret = Secret("hunter2")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError) as refusal:
            pickle.dumps(secret, protocol)
        assert "hunter2" not in str(refusal.value)
    with pytest.raises(TypeError):
        json.dumps({"password": secret})
    with pytest.raises(TypeError):
        vars(secret)


def test_secrets_compare_by_value_and_survive_copies() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert copy.deepcopy({"x": Secret("a")}) == {"x": Secret("a")}


def test_a_vault_shows_no_value_in_debug_output(saved: Path) -> None:
    opened = Vault.open(saved)
    assert "hunter2" not in repr(opened) + repr(vars(opened))


# What is stored


def test_every_printable_character_is_stored(path: Path) -> None:
    first = Vault.open(path)
    first.set("smtp_password", AWKWARD)
    first.save()
    assert Vault.open(path).get("smtp_password").reveal() == AWKWARD


def test_generated_secrets_are_made_once(saved: Path) -> None:
    first, second = Vault.open(saved), Vault.open(saved)
    assert [first.get(name) for name in GENERATED] == [second.get(name) for name in GENERATED]
    assert first.id == second.id
    assert not first.unsaved


def test_two_vaults_have_nothing_in_common(tmp_path: Path) -> None:
    one, other = Vault.open(tmp_path / "one.vault"), Vault.open(tmp_path / "other.vault")
    values = {store.get(name).reveal() for store in (one, other) for name in GENERATED}
    assert len(values) == 2 * len(GENERATED)
    assert one.id != other.id
    assert all(len(value) >= 43 for value in values)


def test_the_signing_key_has_sydents_format(path: Path) -> None:
    algorithm, version, seed = Vault.open(path).get("sydent_signing_key").reveal().split(" ")
    assert (algorithm, version, len(seed)) == ("ed25519", "0", 43)


def test_a_dry_run_writes_nothing(path: Path) -> None:
    opened = Vault.open(path)
    assert opened.get("turn_shared_secret") == opened.get("turn_shared_secret")
    assert opened.unsaved
    assert files(path) == {"prod.py"}


def test_saving_makes_the_vault_and_its_key_for_the_owner_only(saved: Path) -> None:
    assert files(saved) == {"prod.py", "prod.vault", "prod.key"}
    assert mode(saved) == mode(saved.with_suffix(".key")) == 0o600


def test_saving_without_a_change_leaves_the_file_alone(saved: Path) -> None:
    before = (saved.read_bytes(), saved.stat().st_mtime_ns)
    opened = Vault.open(saved)
    opened.get("turn_shared_secret")
    opened.set("smtp_password", "hunter2")
    opened.save()
    assert (saved.read_bytes(), saved.stat().st_mtime_ns) == before


def test_saving_twice_in_one_run(path: Path) -> None:
    opened = Vault.open(path)
    opened.set("smtp_password", "one")
    opened.save()
    opened.set("smtp_password", "two")
    opened.save()
    assert Vault.open(path).get("smtp_password") == Secret("two")


def test_a_vault_that_changed_on_disk_is_not_overwritten(saved: Path) -> None:
    mine, theirs = Vault.open(saved), Vault.open(saved)
    theirs.set("smtp_password", "theirs")
    theirs.save()
    mine.set("smtp_password", "mine")
    with pytest.raises(VaultError, match="changed by someone else"):
        mine.save()
    assert mine.unsaved
    assert Vault.open(saved).get("smtp_password") == Secret("theirs")


def test_a_vault_that_disappeared_is_not_made_again(saved: Path) -> None:
    mine = Vault.open(saved)
    mine.rotate("turn_shared_secret")
    saved.unlink()
    with pytest.raises(VaultError, match="changed by someone else"):
        mine.save()


def test_a_failed_save_leaves_the_old_vault_and_no_temporary_files(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    mine, before, listing = Vault.open(saved), saved.read_bytes(), files(saved)
    mine.set("smtp_password", "new")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(VaultError, match=r"prod\.vault: No space left"):
            mine.save()
    assert saved.read_bytes() == before
    assert files(saved) == listing
    mine.save()
    assert Vault.open(saved).get("smtp_password") == Secret("new")


def test_a_linked_vault_stays_a_link(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "private.vault")
    opened = Vault.open(path)
    opened.set("smtp_password", "kept")
    opened.save()
    assert path.is_symlink()
    assert Vault.open(path).get("smtp_password") == Secret("kept")


def test_of_several_first_runs_at_once_one_saves_and_its_key_stays(path: Path) -> None:
    runs = [Vault.open(path) for _ in range(8)]
    start, saved = threading.Barrier(len(runs)), []

    def first_run(store: Vault) -> None:
        value = store.get("turn_shared_secret")
        start.wait()
        with contextlib.suppress(VaultError):
            store.save()
            saved.append(value)

    threads = [threading.Thread(target=first_run, args=(store,)) for store in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert saved == [Vault.open(path).get("turn_shared_secret")]
    assert files(path) == {"prod.py", "prod.vault", "prod.key"}


def test_a_key_made_meanwhile_is_used_and_not_replaced(path: Path) -> None:
    mine, theirs = Vault.open(path), Vault.open(path)
    theirs.save()
    key = path.with_suffix(".key").read_bytes()
    path.unlink()
    mine.set("smtp_password", "mine")
    mine.save()
    assert path.with_suffix(".key").read_bytes() == key
    assert Vault.open(path).get("smtp_password") == Secret("mine")


# Keys


def test_the_key_from_the_environment_takes_precedence_and_no_file_is_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATRIX_VAULT_KEY", Fernet.generate_key().decode())
    opened = Vault.open(path)
    opened.set("smtp_password", "hunter2")
    opened.save()
    assert files(path) == {"prod.py", "prod.vault"}
    assert Vault.open(path).get("smtp_password") == Secret("hunter2")


@pytest.mark.parametrize("key", ["", "hunter2", "a" * 44 + "=", "ключ", "\udcff"])
def test_a_malformed_key_in_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MATRIX_VAULT_KEY", key)
    with pytest.raises(VaultError, match=r"MATRIX_VAULT_KEY .*is not a key.*Fernet.generate_key") as refusal:
        Vault.open(path)
    assert not key or key not in str(refusal.value)


def test_the_command_to_make_a_key_works(path: Path) -> None:
    made = subprocess.run(vault.MAKE_KEY.replace("python", sys.executable, 1), shell=True, capture_output=True)  # noqa: S602
    result = run(path, "set", "prod", "smtp_password", typed=b"x", MATRIX_VAULT_KEY=made.stdout.decode().strip())
    assert result.returncode == 0, result.stderr


def test_a_missing_key(saved: Path) -> None:
    saved.with_suffix(".key").unlink()
    with pytest.raises(
        VaultError, match=r"prod\.vault .*MATRIX_VAULT_KEY is not set.*prod\.key does not exist.*restore"
    ):
        Vault.open(saved)


def test_a_wrong_key(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_VAULT_KEY", Fernet.generate_key().decode())
    with pytest.raises(VaultError, match=r"prod\.vault does not open with the key in MATRIX_VAULT_KEY"):
        Vault.open(saved)
    monkeypatch.delenv("MATRIX_VAULT_KEY")
    saved.with_suffix(".key").write_bytes(Fernet.generate_key())
    with pytest.raises(VaultError, match=r"prod\.vault does not open with the key in .*prod\.key"):
        Vault.open(saved)


def test_a_key_file_that_is_not_a_key(saved: Path) -> None:
    saved.with_suffix(".key").write_text("hunter2")
    with pytest.raises(VaultError, match=r"prod\.key is not a key; restore") as refusal:
        Vault.open(saved)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o777])
def test_a_key_that_others_can_read_is_refused_until_the_advised_command_is_run(saved: Path, bits: int) -> None:
    saved.with_suffix(".key").chmod(bits)
    with pytest.raises(VaultError) as refusal:
        Vault.open(saved)
    subprocess.run(str(refusal.value).split(": ")[-1], shell=True, check=True)  # noqa: S602
    assert Vault.open(saved).get("smtp_password") == Secret("hunter2")


@pytest.mark.parametrize("damage", [b"", b"hunter2", b"<<<<<<< HEAD\n", b"\x00\xff"])
def test_a_damaged_vault(saved: Path, damage: bytes) -> None:
    saved.write_bytes(damage)
    with pytest.raises(VaultError, match=r"prod\.vault is damaged"):
        Vault.open(saved)


def test_a_vault_cut_short_or_altered(saved: Path) -> None:
    whole = saved.read_bytes()
    for damaged in (whole[:-20], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]):
        saved.write_bytes(damaged)
        with pytest.raises(VaultError, match="damaged"):
            Vault.open(saved)


def test_an_unreadable_path_is_one_line(path: Path) -> None:
    path.mkdir()
    with pytest.raises(VaultError, match=r"prod\.vault: Is a directory"):
        Vault.open(path)
    with pytest.raises(VaultError, match=r"No such file or directory"):
        Vault.open(path.parent / "missing" / "prod.vault").save()


# Setting and rotating


@pytest.mark.parametrize("value", ["", "a\nb", "a\rb", "a\tb", "\x00", "\x1b[0m", "a\x7f", "a\u2028b", "\udcff"])
def test_a_value_that_no_file_can_hold_is_refused_without_repeating_it(path: Path, value: str) -> None:
    opened = Vault.open(path)
    with pytest.raises(VaultError, match=r"^smtp_password: the value ") as refusal:
        opened.set("smtp_password", value)
    assert not value or value not in "".join(traceback.format_exception(refusal.value))
    assert not opened.has("smtp_password")


def test_a_given_secret_that_is_missing_names_the_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent.parent)
    opened = Vault.open(Path("inventories/prod.vault"))
    assert not opened.has("smtp_password")
    with pytest.raises(VaultError, match=r": python manage\.py prod secrets set smtp_password$"):
        opened.get("smtp_password")
    # A vault that is not beside an inventory of its name.
    elsewhere = Vault.open(path.parent.parent / "it.vault")
    with pytest.raises(VaultError, match=r": python vault\.py set /\S+/it\.vault smtp_password$"):
        elsewhere.get("smtp_password")


def test_rotation_changes_one_secret(saved: Path) -> None:
    opened, before = Vault.open(saved), Vault.open(saved)
    opened.rotate("turn_shared_secret")
    opened.save()
    after = Vault.open(saved)
    assert [name for name in SECRETS if after.has(name) and after.get(name) != before.get(name)] == [
        "turn_shared_secret"
    ]


@pytest.mark.parametrize("name", ["sliding_sync_secret", "sydent_signing_key"])
def test_a_secret_that_data_depends_on_changes_only_with_force(saved: Path, name: str) -> None:
    opened = Vault.open(saved)
    before, other = opened.get(name), Vault.open(saved.with_name("other.vault")).get(name)
    with pytest.raises(VaultError, match=f"{name} must not change: .*rotate .*--force"):
        opened.rotate(name)
    with pytest.raises(VaultError, match=f"{name} must not change: .*set .*--force"):
        opened.set(name, other.reveal())
    opened.set(name, before.reveal())
    assert not opened.unsaved
    opened.set(name, other.reveal(), force=True)
    assert opened.get(name) == other
    opened.rotate(name, force=True)
    assert opened.get(name) not in (before, other)


def test_only_a_signing_key_can_be_set_as_one(path: Path) -> None:
    opened = Vault.open(path)
    with pytest.raises(VaultError, match="must look like: ed25519 0 "):
        opened.set("sydent_signing_key", "hunter2")
    key = Vault.open(path).get("sydent_signing_key")
    opened.set("sydent_signing_key", key.reveal())
    assert opened.get("sydent_signing_key") == key


def test_given_secrets_are_not_rotated(saved: Path) -> None:
    with pytest.raises(VaultError, match=r"not generated but given: python manage\.py prod secrets set"):
        Vault.open(saved).rotate("smtp_password")


def test_a_misspelt_name_suggests_the_right_one(path: Path) -> None:
    opened = Vault.open(path)
    for use in (opened.get, opened.has, opened.rotate, lambda name: opened.set(name, "x")):
        with pytest.raises(VaultError, match=r"'smtp_pasword': did you mean smtp_password\?"):
            use("smtp_pasword")
    with pytest.raises(VaultError, match="smtp_password") as refusal:
        opened.get("a-value-in-the-wrong-place")
    assert "a-value" not in str(refusal.value)


def test_a_deployment_is_a_name_or_a_path(tmp_path: Path) -> None:
    assert path_for("prod", tmp_path) == tmp_path / "prod.vault"
    assert path_for("elsewhere/it.vault", tmp_path) == Path("elsewhere/it.vault")
    for wrong in ("", "../prod", "a/b", "-x"):
        with pytest.raises(VaultError, match="neither a deployment's name"):
            path_for(wrong, tmp_path)


# The command line


def test_set_and_show(path: Path) -> None:
    result = run(path, "set", "prod", "smtp_password", typed=AWKWARD.encode() + b"\nnotes below\n")
    assert result.returncode == 0, result.stderr
    assert b"Made inventories/prod.key" in result.stdout
    assert b"pyinfra inventories/prod.py deploy.py" in result.stdout
    assert AWKWARD.encode() not in result.stdout + result.stderr

    shown = run(path, "show", "prod", "smtp_password", PYTHONIOENCODING="ascii")
    assert shown.stdout == AWKWARD.encode() + b"\n"

    again = run(path, "set", "prod", "smtp_password", typed=b"second\r\n")
    assert b"Made" not in again.stdout
    elsewhere = run(path, "show", str(path), "smtp_password")
    assert elsewhere.stdout == b"second\n"


def test_the_list_has_every_name_and_no_value(saved: Path) -> None:
    result = run(saved, "show", "prod")
    assert result.returncode == 0
    rows = {line.split()[0]: line for line in result.stdout.decode().splitlines()}
    assert list(rows) == [name for name in SECRETS if not name.endswith("*")]
    assert " not set " not in rows["smtp_password"]
    assert " not set " in rows["acme_eab_hmac_key"]
    opened = Vault.open(saved)
    for name in [*GENERATED, "smtp_password"]:
        assert opened.get(name).reveal() not in result.stdout.decode()


def test_show_makes_nothing(path: Path) -> None:
    assert run(path, "show", "prod").returncode == 0
    assert "not set in inventories/prod.vault yet" in complaint(run(path, "show", "prod", "turn_shared_secret"))
    assert "python manage.py prod secrets set smtp_password" in complaint(run(path, "show", "prod", "smtp_password"))
    assert files(path) == {"prod.py"}


def test_rotate_says_what_to_run_next(saved: Path) -> None:
    before = Vault.open(saved).get("turn_shared_secret")
    result = run(saved, "rotate", "prod", "turn_shared_secret")
    after = Vault.open(saved).get("turn_shared_secret")
    assert b"pyinfra inventories/prod.py deploy.py" in result.stdout
    assert after != before
    assert after.reveal().encode() not in result.stdout

    assert "--force" in complaint(run(saved, "rotate", "prod", "sliding_sync_secret"))
    assert run(saved, "rotate", "prod", "sliding_sync_secret", "--force").returncode == 0


def test_a_value_is_never_taken_from_an_argument_nor_repeated(path: Path) -> None:
    for argument in ("hunter2", "--hunter2"):
        line = complaint(run(path, "set", "prod", "smtp_password", argument, typed=b"x"))
        assert "too many arguments" in line
        assert "hunter2" not in line
    assert "the value is empty" in complaint(run(path, "set", "prod", "smtp_password"))
    assert "the value must be one line of text" in complaint(run(path, "set", "prod", "smtp_password", typed=b"a\xff"))
    assert files(path) == {"prod.py"}


def test_a_misspelt_deployment_gets_no_vault(path: Path) -> None:
    line = complaint(run(path, "set", "prdo", "smtp_password", typed=b"x"))
    assert line == "vault: there is no inventories/prdo.py: did you mean prod?"
    assert "did you mean smtp_password?" in complaint(run(path, "set", "prod", "smtp_pasword", typed=b"x"))
    assert "which secret?" in complaint(run(path, "set", "prod"))
    assert files(path) == {"prod.py"}


def test_at_a_terminal_the_value_is_asked_for_and_not_echoed(path: Path) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, str(PROGRAM), "set", "prod", "smtp_password"]
    with subprocess.Popen(
        command,
        cwd=path.parent.parent,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        screen = b""
        while b"smtp_password: " not in screen:
            screen += os.read(controller, 1000)
        os.write(controller, b"hunter2\n")
        with contextlib.suppress(OSError):  # how Linux reports the end of a terminal's output
            while more := os.read(controller, 1000):
                screen += more
    os.close(controller)
    assert process.returncode == 0, screen
    assert b"hunter2" not in screen
    assert Vault.open(path).get("smtp_password") == Secret("hunter2")


# --- rotation with an overlap ---------------------------------------------------------------------


def test_the_old_secret_of_the_relay_is_accepted_for_two_days(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Vault.open(saved)
    first = opened.get("turn_shared_secret")
    opened.rotate("turn_shared_secret")
    second = opened.get("turn_shared_secret")
    opened.rotate("turn_shared_secret")
    opened.save()
    again = Vault.open(saved)
    assert not again.unsaved
    assert again.previous("turn_shared_secret") == (second, first)
    assert first not in (second, again.get("turn_shared_secret"))
    later = time.time() + 49 * 3600
    monkeypatch.setattr("vault.time.time", lambda: later)
    assert again.previous("turn_shared_secret") == ()
    # And it is forgotten.
    again.rotate("synapse_form_secret")
    again.save()
    monkeypatch.undo()
    assert Vault.open(saved).previous("turn_shared_secret") == ()


def test_a_secret_that_somebody_knows_is_accepted_no_longer(saved: Path) -> None:
    opened = Vault.open(saved)
    opened.get("turn_shared_secret")
    opened.rotate("turn_shared_secret")
    opened.rotate("turn_shared_secret", at_once=True)
    assert opened.previous("turn_shared_secret") == ()


def test_other_secrets_have_no_overlap(saved: Path) -> None:
    opened = Vault.open(saved)
    opened.get("livekit_secret")
    opened.rotate("livekit_secret")
    assert opened.previous("livekit_secret") == ()


def test_every_secret_can_be_rotated_or_says_why_not() -> None:
    for entry in SECRETS.values():
        if entry.kind != "given":
            assert bool(entry.keep) != bool(entry.rotation), entry.name
            # Where a deploy looks for it, before it makes a new one.
            assert bool(entry.keep) == bool(entry.at), entry.name


# --- another key ----------------------------------------------------------------------------------


def test_another_key_opens_the_vault_and_the_old_one_does_not(saved: Path) -> None:
    key, values = saved.with_suffix(".key"), Vault.open(saved)
    old = key.read_bytes()
    Vault.open(saved).rekey()
    assert key.read_bytes() != old and stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes().split()) == 1
    again = Vault.open(saved)
    assert all(again.get(name) == values.get(name) for name in GENERATED)
    key.write_bytes(old)
    with pytest.raises(VaultError, match="the key of another vault"):
        Vault.open(saved)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_new_key_that_is_interrupted_leaves_a_vault_that_opens(
    saved: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    replaced = whole_file.replace
    done: list[Path] = []

    def killed(path: Path, content: bytes) -> None:
        done.append(path)
        if len(done) == step:
            raise KeyboardInterrupt
        replaced(path, content)

    before = Vault.open(saved)
    monkeypatch.setattr("vault.whole_file.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Vault.open(saved).rekey()
    monkeypatch.undo()
    opened = Vault.open(saved)
    assert opened.get("smtp_password") == before.get("smtp_password")
    opened.rekey()
    assert len(saved.with_suffix(".key").read_bytes().split()) == 1
    assert Vault.open(saved).get("smtp_password") == before.get("smtp_password")


def test_a_key_of_the_environment_is_not_replaced(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_VAULT_KEY", saved.with_suffix(".key").read_text().strip())
    with pytest.raises(VaultError, match="the key is in MATRIX_VAULT_KEY"):
        Vault.open(saved).rekey()
