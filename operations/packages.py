"""Debian packages."""

from collections.abc import Generator, Sequence

from pyinfra.api import StringCommand
from pyinfra.context import host

from operations.look import ask, operation
from operations.shell import Fact, quoted, script, shell_file


class Installed(Fact[set[str]]):
    """Which packages are installed."""

    def question(self) -> str:
        return "dpkg-query --show --showformat '${db:Status-Status} ${Package}\\n'"

    @staticmethod
    def default() -> set[str]:
        return set()

    def answer(self, lines: list[str]) -> set[str]:
        return {line.split()[1] for line in lines if line.startswith("installed ")}


@operation()
def installed(packages: Sequence[str], masked: Sequence[str] = ()) -> Generator[StringCommand, None, None]:
    """Debian packages are installed, without their recommendations, in one transaction.

    packages: plain names (no version, no architecture).
    masked: units that a package would start at once with its sample configuration (an open relay, a page on port 80). They
        stay masked while it is installed; `units.running` starts them once they are configured. The mask is in /run, so
        that it does not survive a power failure.
    """
    found = ask(Installed)
    missing = [package for package in packages if package not in found]
    if not missing:
        host.noop("every package is installed")
        return
    fetching = "-q -o Acquire::Retries=1 -o Acquire::http::Timeout=20"
    install = (
        f"install {fetching} -y --no-install-recommends -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300 "
        f"{quoted(*missing)}"
    )
    steps = [
        "export DEBIAN_FRONTEND=noninteractive",
        shell_file("proxy"),
        "use_proxy",
        shell_file("apt"),
        "messages=$(mktemp -d)",
    ]
    unmask = f"systemctl unmask --runtime --quiet {quoted(*masked)}; " if masked else ""
    steps.append(f"trap '{unmask}rm -rf \"$messages\"' EXIT")
    if masked:
        steps.append(f"systemctl mask --runtime --quiet {quoted(*masked)}")
    steps += [
        # After a power failure in the middle of an installation, dpkg installs nothing before this. If another apt is at work,
        # this fails, and apt-get waits for that one.
        "if ls /var/lib/dpkg/updates | grep -q .; then dpkg --force-confold --configure -a || true; fi",
        # A repository that does not answer may not be needed; the installation fails if it is.
        "touch $messages/update",
        f"update() {{ apt $messages/update update {fetching} -o APT::Update::Error-Mode=any || true; }}",
        # The package lists may be missing or out of date, and then name versions that the mirror no longer has.
        'if [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name "*Packages*" -print -quit)" ] '
        '|| [ -z "$(find /var/lib/apt/lists -maxdepth 0 -mtime -1)" ]; then update; fi',
        f"if apt $messages/install {install}; then exit 0; fi",
        f"if [ ! -s $messages/update ]; then update; if apt $messages/install {install}; then exit 0; fi; fi",
        'why=$(fetch_error $messages/install); [ "$why" ] || why=$(fetch_error $messages/update)',
        "cat $messages/update $messages/install >&2",
        'if [ "$why" ]; then',
        '  echo "packages cannot be fetched, a mirror of this machine does not answer as it should: $why" >&2',
        "fi",
        "exit 1",
    ]
    yield script(*steps)
