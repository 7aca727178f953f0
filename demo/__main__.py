"""`make demo`: a throw-away Debian host with the whole homeserver on it, deployed as an administrator deploys.

Run again, it deploys to the same host again. Files of release pages that cannot be reached are named by the environment, and the
paths are remembered: SLIDING_SYNC_BINARY, LIVEKIT_ARCHIVE, LK_JWT_BINARY. Otherwise their roles are left out.
"""

import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from releases import Release, ReleaseError, store
from roles import ROLES
from settings import Choices, choices_from, rtc, sliding_sync
from settings.deployment import Common
from tests.deployment import PYINFRA, ROOT
from tests.testbed import Host, Testbed, TestbedError

INVENTORY = "demo/demo.py"
ROOT_CERTIFICATE = ROOT / ".cache" / "demo-root.crt"
# Read by demo/demo.py and demo/group_data/demo.py, so that later runs use the same choice: `demo-<setting>` holds the path of a
# file, and `demo-without-<role>` says that the role is left out.
CACHE = ROOT / ".cache"
# Role -> the settings for its files of release pages.
FROM_PAGES = {"sliding_sync": ("sliding_sync_binary",), "rtc": ("livekit_archive", "lk_jwt_binary")}


def main() -> int:
    """Exit status: 0 when everything runs."""
    try:
        say("Booting a throw-away Debian 13 host; the first time it has to be made, which takes about half a minute.")
        host = Testbed().up("demo", wipe=False)
        say(f"It is up at {host.address}.")
        missing = left_out()
        say(f"Deploying: pyinfra {INVENTORY} deploy.py -y")
        changed = deploy()
        if changed is None:
            return 1
        ROOT_CERTIFICATE.parent.mkdir(exist_ok=True)
        host.get("/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt", ROOT_CERTIFICATE)
    except TestbedError as error:
        print(error, file=sys.stderr)
        return 1
    print(report(host, changed, missing))
    return 0


def say(text: str) -> None:
    print(f"--> {text}", flush=True)


def left_out() -> dict[str, str]:
    """Leave out each role whose files are not available; returns why, by role."""
    CACHE.mkdir(exist_ok=True)
    missing = {}
    for role, named in FROM_PAGES.items():
        without = CACHE / f"demo-without-{role}"
        without.unlink(missing_ok=True)
        for setting in named:
            remember(setting)
        say(f"Looking for {ROLES[role].title} on its release page.")
        try:
            for release in releases()[role]:
                store.resolve(release)
        except ReleaseError as error:
            without.touch()
            missing[role] = str(error)
    return missing


def remember(setting: str) -> None:
    """Remember the path of a file, if the environment names one."""
    remembered = CACHE / f"demo-{setting}"
    given = os.environ.get(setting.upper()) or (remembered.read_text() if remembered.exists() else "")
    if given and Path(given).expanduser().is_file():
        remembered.write_text(str(Path(given).expanduser().resolve()))
    else:
        remembered.unlink(missing_ok=True)


def releases() -> dict[str, tuple[Release, ...]]:
    """The releases that the deploy will need, by role, without connecting to the machine."""
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    chosen, record = choices(), ROOT / "inventories/demo.lock"
    assert isinstance(chosen, sliding_sync.Choices) and isinstance(chosen, rtc.Choices)
    return {
        "sliding_sync": (sliding_sync.release_of(chosen, arch, record),),
        "rtc": rtc.releases_of(chosen, arch, record),
    }


def choices() -> Common:
    """The settings of the demo."""
    data = {**runpy.run_path(str(ROOT / "group_data/all.py")), "server_name": "demo.test"}
    for setting in (each for named in FROM_PAGES.values() for each in named):
        remembered = CACHE / f"demo-{setting}"
        data[setting] = remembered.read_text() if remembered.exists() else None
    return choices_from({name: value for name, value in data.items() if name in Choices.model_fields}, "demo")


def deploy() -> int | None:
    """Run pyinfra, and print each operation with its duration. Returns the number of changes, or None if it failed."""
    run = subprocess.Popen(
        [PYINFRA, INVENTORY, "deploy.py", "-y"],
        cwd=ROOT,
        env={**os.environ, "PYINFRA_PROGRESS": "off"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.stdout is not None
    output: list[str] = []
    changed, began, name = 0, time.monotonic(), ""
    for line in run.stdout:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip())
        output.append(plain)
        if plain.startswith("--> Starting operation:"):
            name, began = plain.rpartition(" | ")[2].strip(), time.monotonic()
        elif name and plain.endswith(("] Success", "] No changes")):
            change = plain.endswith("Success")
            changed += change
            took = f"{time.monotonic() - began:5.1f} s" if change else "no change"
            print(f"    {name:<50} {took}", flush=True)
            name = ""
    if run.wait() == 0:
        return changed
    print("\n".join(output[-40:]), file=sys.stderr)
    print("The demo stopped; `make demo` goes on from here.", file=sys.stderr)
    return None


def report(host: Host, changed: int, missing: Mapping[str, str]) -> str:
    played = [role for role in ROLES.values() if role.name not in missing]
    names = ["demo.test", *(f"{role.domain.prefix}.demo.test" for role in played if role.domain)]
    certificate = ROOT_CERTIFICATE.relative_to(ROOT)
    without = "".join(
        f"""
{ROLES[role].title} was left out:
    {why}
This adds it:
    {" ".join(f"{setting.upper()}=/path/to/file" for setting in FROM_PAGES[role])} make demo
"""
        for role, why in missing.items()
    )
    return f"""
A Matrix homeserver runs at {host.address} ({changed or "no"} change{"" if changed == 1 else "s"} in this run).

The homeserver is https://matrix.demo.test, users are @name:demo.test. Only the throw-away hosts know these names; for
a client on this computer, put this line into /etc/hosts, and let the client trust {certificate}:
    {host.address} {" ".join(names)}
Without either, from here:
    curl --cacert {certificate} --resolve matrix.demo.test:443:{host.address} \\
        https://matrix.demo.test/_matrix/client/versions

Make the first account (it asks for the password):
    {command("shell demo")} /opt/matrix-synapse/current/bin/register_new_matrix_user \\
        -c /etc/matrix-synapse/homeserver.yaml -u alice -a http://127.0.0.1:8008
Verify that everything works:   .venv/bin/pytest tests/host --inventory {INVENTORY}
Look around on the host:        {command("shell demo")}
Deploy again after a change:    make demo
Stop and remove it:             make demo-stop
{without}"""


def command(words: str) -> str:
    return f".venv/bin/python -m tests.testbed {words}"


if __name__ == "__main__":
    sys.exit(main())
