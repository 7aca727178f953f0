"""The administrator's pages are the installed release, and behind their door."""

from testinfra.host import Host

from roles import ADMIN, ADMIN_PORT, MONITORING
from settings import Settings
from settings.admin import VERSION, Admin, Choices, tunnel_name
from tests.host.services import DEPLOY, ask, get, statuses

# What is behind the door, and what a program could take for something else.
PATHS = (
    "/",
    "/config.json",
    "/_matrix/client/versions",
    "/_synapse/admin/v1/server_version",
    "//_synapse/admin/v1/server_version",
    "/_matrix/..%2f_synapse/admin/v1/server_version",
    "/api/admin/v1/site-config",
)


# The same for the overview of the monitoring.
OVERVIEW = ("/", "/overview.js", "/api/v1/alerts", "/api/v1/query?query=up", "//api/v1/alerts")


def test_is_the_version_of_the_settings(host: Host, settings: Settings) -> None:
    home = settings.view(Admin).release.home
    installed = ask(host, "readlink %s", f"{home}/current").strip()
    assert installed.rpartition("/")[2].startswith(f"{VERSION}-"), f"Ketesa is {installed}, not {VERSION}: {DEPLOY}"
    changed = ask(host, r"find %s -ignore_readdir_race ! -type l \( ! -user root -o -perm /022 \)", f"{home}/").split()
    assert not changed, f"others than root may change {', '.join(changed[:3])}: {DEPLOY}"


def test_a_tunnel_ends_at_a_closed_door(host: Host, settings: Settings) -> None:
    """401: it asks for the password; 403: there is none yet, which lets nobody in."""
    tunnel = settings.view(Admin).tunnel
    found = {path: get(host, f"http://{tunnel}:{ADMIN_PORT}{path}").status for path in PATHS}
    wrong = {path: status for path, status in found.items() if status not in (401, 403)}
    assert not wrong, f"the administrator's pages are open to every user of the machine: {wrong}; {DEPLOY}"
    if settings.here("monitoring"):
        overview = tunnel_name(settings, MONITORING)
        found = {path: get(host, f"http://{overview}:{ADMIN_PORT}{path}").status for path in OVERVIEW}
        wrong = {path: status for path, status in found.items() if status not in (401, 403)}
        assert not wrong, f"the overview is open to every user of the machine: {wrong}; {DEPLOY}"
    other = get(host, f"http://127.0.0.1:{ADMIN_PORT}/")
    assert other.status == 404, f"{other}, as pages of others could make a browser ask: {DEPLOY}"


def test_from_the_networks_the_door_is_closed_as_well(host: Host, settings: Settings) -> None:
    """This machine is one of them."""
    if settings.section(Choices).admin_networks:
        found = statuses(host, settings.domain(ADMIN), PATHS)
        wrong = {path: status for path, status in found.items() if status not in (401, 403)}
        assert not wrong, f"the administrator's pages are open: {wrong}; {DEPLOY}"
