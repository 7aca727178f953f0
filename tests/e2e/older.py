"""This project with another Synapse, as after a line of requirements/synapse.in was changed and `make lock` was run."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.deployment import ROOT

OLDER = "1.160.0"


def copied(checkout: Path) -> Path:
    """This project, as it is."""
    return Path(
        shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__"))
    )


def older_checkout(directory: Path) -> Path:
    """With an older version."""
    checkout = copied(directory / "older")
    lock = checkout / "requirements" / "synapse"
    wanted = lock.with_suffix(".in").read_text().splitlines()
    lock.with_suffix(".in").write_text(
        "".join(f"{line.partition('==')[0]}=={OLDER}\n" if "matrix-synapse" in line else f"{line}\n" for line in wanted)
    )
    command = "uv pip compile -q --universal --generate-hashes --python-version 3.11 --only-binary :all: synapse.in"
    subprocess.run([ROOT / ".venv/bin/uv", *command.split()[1:], "-o", "synapse.txt"], cwd=lock.parent, check=True)
    return checkout


def broken_checkout(older: Path, directory: Path) -> Path:
    """With one that does not start, because a package that it needs is not in the lock; and with another configuration."""
    checkout = directory / "broken"
    shutil.copytree(older, checkout)
    lock = checkout / "requirements" / "synapse.txt"
    lock.write_text(lock.read_text().replace(entry(lock, "psycopg2-binary"), ""))
    for name in ("homeserver.yaml.j2", "run-synapse", "matrix-synapse.service.j2"):
        with (checkout / "templates" / "synapse" / name).open("a") as file:
            file.write("# Broken.\n")
    return checkout


def entry(lock: Path, package: str) -> str:
    """The lines of a package in a lock."""
    found = re.search(rf"^{package}==.*?(?=^[a-z])", lock.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def broken_sydent(directory: Path) -> Path:
    """With a Sydent of other packages, whose configuration has an address that no machine has."""
    checkout = copied(directory / "sydent")
    requirements = checkout / "requirements"
    with (requirements / "sydent.txt").open("a") as lock:
        lock.write(entry(requirements / "synapse.txt", "psycopg2-binary"))
    configuration = checkout / "templates" / "sydent" / "sydent.conf.j2"
    text = configuration.read_text()
    assert "{{ sydent.bind_address | ini }}" in text
    configuration.write_text(text.replace("{{ sydent.bind_address | ini }}", "192.0.2.1"))
    return checkout
