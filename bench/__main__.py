"""`python -m bench [--runs N] [--only NAME] [--size MIB]`: a table of figures; the exit status is 1 if one misses its bound."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from bench import backup, element_x, federation, full_deploy, memory, relay, rerun, upgrade, web
from bench.figures import Figure, table
from bench.trial import every_role, fresh_host, load, proxy, say
from tests.conftest import STAND_IN, real_rtc
from tests.standin.archives import real_mas
from tests.testbed import TestbedError

NAMES = ("deploy", "rerun", "memory", "web", "relay", "federation", "upgrade", "element-x", "backup")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure on throw-away hosts.")
    parser.add_argument(
        "--runs", type=int, default=5, help="full deploys, and floors to compare them with (default: 5)"
    )
    parser.add_argument("--only", choices=NAMES, help="measure only this")
    parser.add_argument(
        "--size",
        type=int,
        default=1024,
        help="backup: MiB of database, and of media (default: 1024, needs 8 GiB of disk)",
    )
    parser.add_argument("--seconds", type=int, default=60, help="backup: of each round of transactions (default: 60)")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if options.size < 1 or options.seconds < 1:
        parser.error("--size and --seconds must be at least 1")
    wanted = (options.only,) if options.only else NAMES
    say(load())
    try:
        figures = list(measure(wanted, options.runs, options.size, options.seconds))
    except (
        TestbedError,
        AssertionError,
        backup.Failed,
        element_x.NoMigration,
        full_deploy.Incomparable,
        rerun.Changed,
        web.Failed,
        relay.Unmeasured,
    ) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"\n{table(figures)}\n")
    if proxy() == STAND_IN:
        print("The Sliding Sync proxy is a stand-in: set SLIDING_SYNC_BINARY to measure the real one.")
    if "element-x" in wanted and not given():
        print(
            "What Element X needs was not measured: set MAS_BINARY, LIVEKIT_BINARY and LK_JWT_BINARY to the real programs."
        )
    missed = [figure.name for figure in figures if figure.missed]
    if missed:
        print(f"Missed: {', '.join(missed)}.")
    return 1 if missed else 0


def measure(wanted: tuple[str, ...], runs: int, size: int, seconds: int) -> Iterator[Figure]:
    if "deploy" in wanted:
        yield from full_deploy.measure(runs)
    if set(wanted) - {"deploy", "element-x", "backup"}:
        for release in ("trixie", "bookworm") if "memory" in wanted else ("trixie",):
            with ExitStack() as stack:
                host = stack.enter_context(fresh_host(f"bench-{release}", release))
                deployment = stack.enter_context(every_role(host))
                if "rerun" in wanted and release == "trixie":
                    yield from rerun.measure_six(host, deployment)
                say(f"deploying everything to {host.name}")
                deployment.run("-y")
                if "rerun" in wanted and release == "trixie":
                    yield from rerun.measure(host, deployment)
                if "memory" in wanted:
                    yield from memory.measure(host)
                if "web" in wanted and release == "trixie":
                    yield from web.measure(host)
                if "relay" in wanted and release == "trixie":
                    yield from relay.measure(host)
                if "federation" in wanted and release == "trixie":
                    yield from federation.measure(host, deployment)
                if "upgrade" in wanted and release == "trixie":
                    yield from upgrade.measure(host, deployment)
    if "backup" in wanted:
        yield from backup.measure(size, seconds)
    if "element-x" in wanted and given():
        with fresh_host("bench-element-x") as host, every_role(host) as deployment:
            say(f"deploying everything to {host.name}, then MAS")
            yield from element_x.measure(host, deployment)


def given() -> bool:
    """Whether the real programs of mas and rtc are."""
    return bool(real_mas()) and real_rtc()


if __name__ == "__main__":
    sys.exit(main())
