"""Debian packages."""

from collections.abc import Generator, Sequence

from pyinfra.api import StringCommand, operation
from pyinfra.api.state import StateStage
from pyinfra.context import host, state

from operations.shell import Fact, quoted, script


class Installed(Fact[set[str]]):
    """Which packages are installed."""

    def question(self) -> str:
        return "dpkg-query --show --showformat '${db:Status-Status} ${Package}\\n'"

    @staticmethod
    def default() -> set[str]:
        return set()

    def answer(self, lines: list[str]) -> set[str]:
        return {line.split()[1] for line in lines if line.startswith("installed ")}


# Asked once per machine and stage of the run, not once per role: what the run itself installs is added.
_found: dict[tuple[str, StateStage], set[str]] = {}


@operation()
def installed(packages: Sequence[str], held: Sequence[str] = ()) -> Generator[StringCommand, None, None]:
    """Install Debian packages, without their recommendations.

    packages: plain names (no version, no architecture).
    held: units that a package would start at once with its sample configuration (an open relay, a page on port 80). They
        stay masked while it is installed; `units.running` starts them once they are configured. The mask lies in /run,
        so that not even a power cut leaves it behind.
    """
    asked = (host.name, state.current_stage)
    if asked not in _found:
        _found[asked] = host.get_fact(Installed)
    found = _found[asked]
    missing = [package for package in packages if package not in found]
    if not missing:
        host.noop(f"installed: {', '.join(packages)}")
        return

    options = "-q -y --no-install-recommends -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300"
    install = f"apt-get install {options} {quoted(*missing)}"
    steps = ["export DEBIAN_FRONTEND=noninteractive"]
    if held:
        steps += [
            f"systemctl mask --runtime --quiet {quoted(*held)}",
            f"trap 'systemctl unmask --runtime --quiet {quoted(*held)}' EXIT",
        ]
    steps += [
        # A machine that lost its power while packages were unpacked takes no others before this. If another apt is at work
        # instead, it is refused, and apt-get waits for that one.
        "if ls /var/lib/dpkg/updates | grep -q .; then dpkg --force-confold --configure -a || true; fi",
        # A server's lists may be absent or stale, and a stale list names versions that the mirror no longer has.
        "update() { apt-get update -q -o DPkg::Lock::Timeout=300; }",
        'if [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name "*Packages*" -print -quit)" ] '
        '|| [ -z "$(find /var/lib/apt/lists -maxdepth 0 -mtime -1)" ]; then update; fi',
        f"{install} || {{ update && {install}; }}",
    ]
    yield script(*steps)
    # A run goes on here only when that succeeded; one that merely looks ahead counts on it, as the rest of it does.
    found.update(missing)
