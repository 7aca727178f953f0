"""What the processes of a host have on their command lines, which every user there can read."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.testbed import Host

# A directory in memory that only root can enter.
HIDDEN = "/run/secrets-of-the-test"
# Collects every command line of every process until it is told to stop.
SAMPLER = r"""
my %seen;
while (!-e "HIDDEN/stop") {
    for my $file (glob "/proc/[0-9]*/cmdline") {
        local $/;
        next unless open my $handle, "<", $file;
        my $line = <$handle>;
        $seen{$line} = 1 if defined $line;
    }
    select undef, undef, undef, 0.01;
}
open my $out, ">", "HIDDEN/command-lines";
print $out join "\n", keys %seen;
"""


@contextmanager
def command_lines(host: Host) -> Iterator[list[str]]:
    """Collect all command lines of the host during the block; they are in the list after it."""
    seen: list[str] = []
    host.run(
        f"install -d -m 700 {HIDDEN} && rm -f {HIDDEN}/stop && cat > {HIDDEN}/sampler",
        stdin=SAMPLER.replace("HIDDEN", HIDDEN),
    )
    host.run(f"systemd-run --quiet --collect --unit=sampler perl {HIDDEN}/sampler")
    yield seen
    host.run(f"touch {HIDDEN}/stop; while systemctl is-active --quiet sampler; do sleep 0.1; done")
    seen += host.run(f"cat {HIDDEN}/command-lines").stdout.splitlines()
