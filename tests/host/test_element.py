"""Element Web is the installed release, and knows this homeserver."""

from testinfra.host import Host

from roles import ELEMENT, SYNAPSE
from settings import Settings
from settings.element import CINNY_VERSION, VERSION, Element
from tests.host.services import DEPLOY, ask, get


def test_is_the_version_of_the_settings(host: Host, settings: Settings) -> None:
    answer = get(host, f"https://{settings.domain(ELEMENT)}/version")
    assert answer.status == 200, f"{answer}: {DEPLOY}"
    wanted = VERSION.removeprefix("v")
    assert answer.body.strip().removeprefix("v") == wanted, (
        f"Element Web is {answer.body.strip()[:40]}, not {wanted}: {DEPLOY}"
    )


def test_its_page_is_served(host: Host, settings: Settings) -> None:
    answer = get(host, f"https://{settings.domain(ELEMENT)}/")
    assert answer.status == 200 and "<html" in answer.body.lower(), f"{answer}: {DEPLOY}"


def test_knows_this_homeserver(host: Host, settings: Settings) -> None:
    answer = get(host, f"https://{settings.domain(ELEMENT)}/config.json")
    assert answer.status == 200, f"{answer}: {DEPLOY}"
    found = answer.json().get("default_server_config", {}).get("m.homeserver")
    wanted = {"base_url": f"https://{settings.domain(SYNAPSE)}", "server_name": settings.server_name}
    assert found == wanted, f"Element Web is told that the homeserver is {found}, not {wanted}: {DEPLOY}"


def test_files_are_those_of_the_release(host: Host, settings: Settings) -> None:
    """Scripts that run in the browsers of all users: nobody but root may change them."""
    home = settings.view(Element).release.home
    changed = ask(host, r"find %s -ignore_readdir_race ! -type l \( ! -user root -o -perm /022 \)", f"{home}/").split()
    assert not changed, f"others than root may change {', '.join(changed[:3])}: {DEPLOY}"


def test_cinny_knows_this_homeserver(host: Host, settings: Settings) -> None:
    if cinny := settings.view(Element).cinny:
        answer = get(host, f"https://{cinny.domain}/")
        assert answer.status == 200 and "<html" in answer.body.lower(), f"{answer}: {DEPLOY}"
        answer = get(host, f"https://{cinny.domain}/config.json")
        assert answer.status == 200 and answer.json() == cinny.config, f"{answer}: {DEPLOY}"
        installed = ask(host, "readlink %s", f"{cinny.release.home}/current").strip().rpartition("/")[2]
        assert installed.startswith(f"{CINNY_VERSION}-"), f"Cinny is {installed}, not {CINNY_VERSION}: {DEPLOY}"


def test_the_page_for_stickers_is_served(host: Host, settings: Settings) -> None:
    if name := settings.view(Element).stickers:
        answer = get(host, f"https://{name}/")
        assert answer.status == 200 and "picker.js" in answer.body, f"{answer}: {DEPLOY}"
