"""`make demo`: a throw-away Debian host with the whole homeserver on it, deployed as an administrator deploys.

Run again, it deploys to the same host again. A role whose program is not on its release page, or whose page cannot be reached, is
left out; MAS_BINARY=PATH and others name the program (demo/programs.py), and the path is remembered.
"""

import base64
import hashlib
import os
import re
import subprocess
import sys
import time

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from demo.programs import Found, look_for, mistakes
from roles import ELEMENT
from tests.deployment import PYINFRA, ROOT
from tests.testbed import Testbed, TestbedError

INVENTORY = "demo/demo.py"
ROOT_CERTIFICATE = ROOT / ".cache" / "demo-root.crt"


def main() -> int:
    """Exit status: 0 when everything runs."""
    if wrong := mistakes():
        print("\n".join(wrong), file=sys.stderr)
        return 1
    try:
        say("Booting a throw-away Debian 13 host; the first time it has to be made, which takes about half a minute.")
        host = Testbed().up("demo", wipe=False)
        say(f"It is up at {host.address}.")
        found = look_for(say)
        say(f"Deploying: pyinfra {INVENTORY} deploy.py -y")
        changed = deploy()
        if changed is None:
            return 1
        ROOT_CERTIFICATE.parent.mkdir(exist_ok=True)
        host.get("/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt", ROOT_CERTIFICATE)
    except TestbedError as error:
        print(error, file=sys.stderr)
        return 1
    print(report(host.address, changed, found))
    return 0


def say(text: str) -> None:
    print(f"--> {text}", flush=True)


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


def report(address: str, changed: int, found: Found) -> str:
    names = ["demo.test", *(f"{role.domain.prefix}.demo.test" for role in found.played if role.domain)]
    certificate = ROOT_CERTIFICATE.relative_to(ROOT)
    return f"""
A Matrix homeserver runs at {address} ({changed or "no"} change{"" if changed == 1 else "s"} in this run).

The homeserver is https://matrix.demo.test, users are @name:demo.test. Only the throw-away hosts know these names; for
a client on this computer, put this line into /etc/hosts, and let the client trust {certificate}:
    {address} {" ".join(names)}
Without either, from here:
    curl --cacert {certificate} --resolve matrix.demo.test:443:{address} \\
        https://matrix.demo.test/_matrix/client/versions

Make the first account (it asks for the password):
    .venv/bin/python manage.py {INVENTORY} accounts create alice --admin
Verify that everything works:   .venv/bin/pytest tests/host --inventory {INVENTORY}
Look around on the host:        {command("shell demo")}
Deploy again after a change:    make demo
Stop and remove it:             make demo-stop
{found.explanation}

{in_a_browser(address, found)}"""


def in_a_browser(address: str, found: Found) -> str:
    """How to open the demo in a browser that knows its names and its authority, until it is closed."""
    if ELEMENT not in found.played:
        return "There is no client to sign up and write in a browser without Element Web: see above."
    authority = x509.load_pem_x509_certificate(ROOT_CERTIFICATE.read_bytes()).public_key()
    key = authority.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    trusted = base64.b64encode(hashlib.sha256(key).digest()).decode()
    return f"""
Sign up and write in a browser:     https://chat.demo.test/
Chromium knows the name and trusts the certificate like this, as a user other than root:
    chromium --user-data-dir=/tmp/matrix-metal-demo --ignore-certificate-errors-spki-list={trusted} \\
        --host-resolver-rules="MAP demo.test {address}, MAP *.demo.test {address}" https://chat.demo.test/""".lstrip()


def command(words: str) -> str:
    return f".venv/bin/python -m tests.testbed {words}"


if __name__ == "__main__":
    sys.exit(main())
