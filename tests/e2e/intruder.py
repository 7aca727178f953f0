"""What an attacker who has taken over a service would try: prints a line for each attempt that succeeds, and does no harm.

Run on a test host, inside a service's confinement, as `intruder.py TARGETS`, a JSON file with the targets of the attempts.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

Attempt = tuple[str, Callable[[], object]]
LIBC = ctypes.CDLL(None, use_errno=True)
# Of x86-64.
PTRACE, PTRACE_SEIZE, CLONE_NEWNET, CLONE_NEWUSER = 101, 0x4206, 0x40000000, 0x10000000
UNSHARE = 272
KCMP, PROCESS_VM_READV, SETNS, PIDFD_GETFD = 312, 310, 308, 438
GET_ROBUST_LIST, MOVE_PAGES = 274, 279
F_SETSIG, SIOCSPGRP = 10, 0x8902


class NothingFound(Exception):
    """The call succeeded, but showed nothing."""


def call(number: int, *arguments: object) -> int:
    # An int would set only half of a register.
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(LIBC.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def require_any(found: Iterable[object]) -> None:
    if not any(True for _ in found):
        raise NothingFound


def read(path: str) -> None:
    if Path(path).is_dir():
        require_any(Path(path).iterdir())
    # In place of a file that systemd hides there is an empty one, which CAP_DAC_READ_SEARCH may read.
    elif not os.read(os.open(path, os.O_RDONLY), 1):
        raise NothingFound


def write(path: str) -> None:
    """Create a file in a directory and remove it again, or open a file for writing."""
    if Path(path).is_dir():
        created = Path(path) / f"intruder-{os.getpid()}.service"
        created.touch(0o600, exist_ok=False)
        created.unlink()
    else:
        os.close(os.open(path, os.O_WRONLY))


def in_child(number: int, *arguments: object) -> None:
    """A call that would change the process that makes it."""
    if os.fork() == 0:
        try:
            call(number, *arguments)
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.wait()[1]):
        raise NothingFound


def take_file(pid: int) -> None:
    call(PIDFD_GETFD, os.pidfd_open(pid), 1, 0)


def read_memory(pid: int) -> None:
    """The kernel checks the permission before the address, which is mapped nowhere: EFAULT means permitted."""
    try:
        call(
            PROCESS_VM_READV,
            pid,
            (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8),
            1,
            (ctypes.c_size_t * 2)(0, 8),
            1,
            0,
        )
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def signal_by_descriptor(pid: int) -> None:
    """The kernel sends the signal of F_SETSIG to the process of F_SETOWN, without kill(); as root to every process."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
    fcntl.fcntl(reader, F_SETSIG, signal.SIGUSR1)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writer, b".")


def own_by_ioctl(pid: int) -> None:
    one, _ = socket.socketpair()
    fcntl.ioctl(one, SIOCSPGRP, pid.to_bytes(4, "little"))


def attempts_at(name: str, pid: int) -> Iterator[Attempt]:
    for part in ("root/usr", "cwd/.", "environ", "fd", "maps", "exe"):
        yield f"/proc/<{name}>/{part}", partial(read, f"/proc/{pid}/{part}")
    yield f"memory of {name}", partial(read_memory, pid)
    yield f"files of {name}", partial(take_file, pid)
    yield f"namespaces of {name}", lambda: in_child(SETNS, os.pidfd_open(pid), CLONE_NEWNET)
    yield f"ptrace of {name}", partial(in_child, PTRACE, PTRACE_SEIZE, pid, None, None)
    yield f"kcmp of {name}", lambda: call(KCMP, pid, os.getpid(), 1, 0, 0)
    yield f"move_pages of {name}", partial(call, MOVE_PAGES, pid, 0, None, None, None, 0)
    yield (
        f"robust list of {name}",
        lambda: call(GET_ROBUST_LIST, pid, ctypes.byref(ctypes.c_void_p()), ctypes.byref(ctypes.c_size_t())),
    )
    yield f"kill of {name}", partial(os.kill, pid, 0)
    yield f"pidfd signal to {name}", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0)
    yield f"limits of {name}", partial(resource.prlimit, pid, resource.RLIMIT_CORE)
    yield f"priority of {name}", lambda: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))
    yield f"processors of {name}", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    # Calls that only show that the process exists.
    yield f"existence of {name}", partial(os.getpgid, pid)
    yield f"existence of {name}", partial(os.getsid, pid)
    yield f"existence of {name}", partial(os.pidfd_open, pid)
    yield f"existence of {name}", partial(os.sched_getaffinity, pid)
    yield f"existence of {name}", partial(os.sched_getscheduler, pid)
    yield f"existence of {name}", partial(os.getpriority, os.PRIO_PROCESS, pid)
    yield f"ownership of {name}", partial(own_by_ioctl, pid)


def other_processes() -> None:
    require_any(path for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid())


def terminals() -> None:
    require_any(path for path in Path("/dev/pts").iterdir() if path.name.isdigit() and opens(path))


def opens(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def connect(address: str) -> None:
    """To a datagram or to a stream socket, whichever it is."""
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect(address)
    except OSError as error:
        if error.errno != errno.EPROTOTYPE:
            raise
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(address)


def attempts(targets: dict[str, Any]) -> Iterator[Attempt]:
    yield "processes in /proc", other_processes
    yield "terminals", terminals
    yield "raw socket", partial(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    yield "packet socket", partial(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
    yield "new network namespace", partial(in_child, UNSHARE, CLONE_NEWNET)
    yield "new user namespace", partial(in_child, UNSHARE, CLONE_NEWUSER)
    for name, pid in targets["processes"].items():
        yield from attempts_at(name, pid)
    for path in targets["readable"]:
        yield f"read {path}", partial(read, path)
    for path in targets["writable"]:
        yield f"write {path}", partial(write, path)
    for address in targets["sockets"]:
        yield f"socket {address.replace(chr(0), '@')}", partial(connect, address)


def main() -> None:
    """With --all, only list the attempts."""
    targets = json.loads(Path(sys.argv[1]).read_text())
    if "--all" in sys.argv:
        print(*(name for name, _ in attempts(targets)), sep="\n")
        return
    for name, attempt in attempts(targets):
        with contextlib.suppress(OSError, NothingFound):
            attempt()
            print(f"reached: {name}", flush=True)
    for pid in targets["signalled"]:
        # The receiving process records whether it arrives.
        with contextlib.suppress(OSError):
            signal_by_descriptor(pid)
    print("reached: the end", flush=True)


if __name__ == "__main__":
    main()
