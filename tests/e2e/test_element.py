"""Element Web in a browser, by its public name. Its release may be a stand-in: what is tested is how it is served, and told."""

import json
import time
from pathlib import Path

import httpx
import pytest

from settings.element import VERSION
from tests.conftest import Deployed
from tests.e2e.call.browser import browsing
from tests.e2e.client import TIMEOUT, Outside
from tests.standin.archives import real_element
from tests.testbed import Host

pytestmark = pytest.mark.role("element")


def get(outside: Outside, path: str) -> httpx.Response:
    with outside.http() as http:
        return http.get(outside.url("chat", path))


def test_the_client_knows_this_homeserver_and_no_other(outside: Outside) -> None:
    domain = outside.host.domain
    answer = get(outside, "/config.json")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-cache"
    config = answer.json()
    assert config["default_server_config"] == {
        "m.homeserver": {"base_url": f"https://matrix.{domain}", "server_name": domain},
        "m.identity_server": {"base_url": f"https://identity.{domain}"},
    }
    assert config["disable_custom_urls"] and config["room_directory"] == {"servers": [domain]}
    assert config["element_call"] == {"use_exclusively": True}
    # The browser asks for the one of its host first.
    assert get(outside, f"/config.chat.{domain}.json").json() == config
    # Nothing of it leads to somebody else.
    text = json.dumps(config)
    assert "element.io" not in text and "vector.im" not in text and "matrix.org" not in text


def test_an_upgrade_reaches_browsers_at_the_next_load(outside: Outside) -> None:
    for path in ("/", "/index.html", "/version", "/config.json", "/i18n/languages.json"):
        assert get(outside, path).headers["cache-control"] == "no-cache", path
    assert get(outside, "/version").text.strip() == VERSION.removeprefix("v")
    if not real_element():
        kept = get(outside, "/bundles/0123456789ab/app.js").headers["cache-control"]
        assert "immutable" in kept and "max-age=31536000" in kept


@pytest.mark.parametrize("path", ["/", "/config.json", "/welcome.html"])
def test_pages_cannot_be_framed_by_others_and_load_no_foreign_scripts(outside: Outside, path: str) -> None:
    headers = get(outside, path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'self'" and policy["object-src"] == "'none'"
    assert headers["x-frame-options"] == "SAMEORIGIN" and headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    widget = get(outside, "/widgets/element-call/index.html").headers
    assert widget["content-security-policy"] == "frame-ancestors 'self'"


@pytest.mark.parametrize(
    "path", ["/nothing", "/../config.json.j2", "/.sum", "/bundles/", "/_matrix/client/versions", "/etc/"]
)
def test_nothing_else_is_there(outside: Outside, path: str) -> None:
    assert get(outside, path).status_code == 404


def test_a_person_opens_it(outside: Outside, chromium: Host, tmp_path: Path) -> None:
    """It works under the policy of its page: its script, its style, and the homeserver."""
    with browsing(chromium, outside.root) as browser:
        page = browser.page()
        page.do("Log.enable")
        page.open(outside.url("chat", "/"))
        wanted = "document.body ? document.body.innerText : ''"
        deadline = time.monotonic() + TIMEOUT
        shown = ""
        while outside.host.domain not in shown and time.monotonic() < deadline:
            shown = page.run(wanted)
            time.sleep(0.2)
        page.picture(tmp_path / "desktop.png", 1440, 900)
        page.picture(tmp_path / "phone.png", 390, 844)
        assert outside.host.domain in shown, shown
        assert page.run("document.title") == "Element"
        if not real_element():
            assert page.run("getComputedStyle(document.querySelector('h1')).color") == "rgb(13, 189, 139)"


def test_a_deploy_heals_it(deployed: Deployed, outside: Outside) -> None:
    host, deployment = deployed.host, deployed.deployment
    host.run("echo broken >/opt/element-web/current/index.html; echo '{}' >/etc/element-web/config.json")
    assert deployment.run("-y").changed == ["Configure Element Web", "Install Element Web"]
    assert get(outside, "/").text != "broken\n"
    assert deployment.run("-y").changed == []
