"""Ports that only the users of their services can take: a file with them, and a unit that has the kernel refuse others."""

from collections.abc import Iterable

from operations.files import Copy, Entry, Template

UNIT = "matrix-metal-reserved-ports.service"
PATH = "/etc/matrix-metal/reserved-ports"
PROGRAM = "/usr/local/lib/reserve-ports"
# What is reserved, with the numbers of the users; or one sentence why nothing is.
STATE = "/run/matrix-metal-reserved-ports/reserved"
NOTHING = "no port is reserved"
# The ports that the kernel does not choose by itself.
CHOSEN = "/proc/sys/net/ipv4/ip_local_reserved_ports"
# Shell command that succeeds while what is reserved is what the file says. Users may have got other numbers since.
WORKS = (
    f"systemctl is-active --quiet {UNIT} && {{ grep -qs '^{NOTHING}' {STATE} || awk 'NR == FNR {{ split($0, user, \":\"); "
    'number[user[1]] = user[3]; next } /^#/ { next } { print $1, $2, $3 in number ? number[$3] : "4294967295" }\' '
    f"/etc/passwd {PATH} | cmp -s - {STATE}; }}"
)


def entries(numbers: Iterable[int]) -> list[Entry]:
    """The unit and its program, for these ports; the operation that writes the file is the task's own."""
    values = {"unit": UNIT, "program": PROGRAM, "path": PATH, "state": STATE, "chosen": CHOSEN}
    values["numbers"] = ",".join(map(str, sorted(set(numbers))))
    return [
        Copy(PROGRAM, "ports/reserve-ports", mode="644"),
        Template(f"/etc/systemd/system/{UNIT}", "ports/reserve-ports.service", mode="644", values=values),
    ]
