"""The testbed's command line: `python -m tests.testbed --help`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time

from . import RELEASES, Host, Testbed, TestbedError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; if it fails, print one line on stderr and return exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        return _do(Testbed(), options)
    except TestbedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.testbed", description="Throw-away Debian hosts.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a fresh host")
    up.add_argument("name", help="its name; it owns NAME.test and all names below")
    up.add_argument("--release", choices=list(RELEASES), default="trixie", help="Debian release (default: trixie)")
    up.add_argument(
        "--names", nargs="+", default=[], metavar="DOMAIN", help="more names: example.test '*.example.test'"
    )
    up.add_argument("--keep-disk", action="store_true", help="start the stopped one again, or leave the running one")
    down = commands.add_parser("down", help="delete a host")
    which = down.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?")
    which.add_argument("--all", action="store_true", help="delete all hosts of this checkout")
    commands.add_parser("prepare", help="make what hosts need already, which the first ones would wait for")
    commands.add_parser("list", help="show the hosts of this checkout")
    shell = commands.add_parser("shell", help="log in as root, or run a command")
    shell.add_argument("name")
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="command")
    return parser


def _do(bed: Testbed, options: argparse.Namespace) -> int:
    if options.command == "up":
        begin = time.monotonic()
        host = bed.up(options.name, release=options.release, names=options.names, wipe=not options.keep_disk)
        print(
            f"{host.name} is up after {time.monotonic() - begin:.1f} s: Debian {RELEASES[host.release]}, {host.address}"
        )
        print(f"log in with: python -m tests.testbed shell {host.name}")
    elif options.command == "down":
        for host in bed.hosts() if options.all else [bed.find(options.name)]:
            host.down()
            print(f"{host.name} is deleted")
    elif options.command == "prepare":
        bed.prepare()
    elif options.command == "list":
        for host in bed.hosts():
            print(_line(host))
        if not bed.hosts():
            print("no hosts: start one with `python -m tests.testbed up NAME`")
    else:
        host = bed.get(options.name)
        words = options.words
        # One word may be a whole shell command; several are a program and its arguments.
        command = words if len(words) < 2 else [shlex.join(words)]
        os.execvp("ssh", host.ssh(*command))  # noqa: S606
    return 0


def _line(host: Host) -> str:
    minutes, seconds = divmod(int(host.uptime), 60)
    state = f"up {minutes // 60}:{minutes % 60:02}:{seconds:02}" if host.running else "stopped"
    return f"{host.name:16} {host.release:9} {host.address:15} {state:12} {host.disk_use / 2**20:6.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
