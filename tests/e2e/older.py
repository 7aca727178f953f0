"""This project with another Synapse, as after a line of requirements/synapse.in was changed and `make lock` was run."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.deployment import ROOT

OLDER = "1.160.0"


def older_checkout(directory: Path) -> Path:
    """With an older version."""
    checkout = directory / "older"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__"))
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
    text, removed = re.subn(r"^psycopg2-binary==.*?(?=^[a-z])", "", lock.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert removed == 1
    lock.write_text(text)
    for name in ("homeserver.yaml.j2", "run-synapse", "matrix-synapse.service.j2"):
        with (checkout / "templates" / "synapse" / name).open("a") as file:
            file.write("# Broken.\n")
    return checkout
