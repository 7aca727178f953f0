"""Element Web in a browser, by its public name. Its release may be a stand-in: what is tested is how it is served, and told."""

import base64
import json
import re
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings.element import VERSION
from tests.conftest import Deployed
from tests.e2e.call.browser import Page, browsing
from tests.e2e.client import TIMEOUT, Account, Outside, expect_json
from tests.standin.archives import real_element
from tests.testbed import Host

pytestmark = pytest.mark.role("element")


def get(outside: Outside, path: str, service: str = "chat") -> httpx.Response:
    with outside.http() as http:
        return http.get(outside.url(service, path))


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


@pytest.mark.once("debian13")
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
        # And Cinny, whose page has a script in itself; the name of the homeserver is in a field of the real one's.
        page.open(outside.url("cinny", "/"))
        deadline = time.monotonic() + TIMEOUT
        while outside.host.domain not in (shown := str(page.run(f"{wanted} + document.querySelector('input')?.value"))):
            assert time.monotonic() < deadline, shown
            time.sleep(0.2)


def test_cinny_knows_this_homeserver_and_no_other(outside: Outside) -> None:
    domain = outside.host.domain
    config = get(outside, "/config.json", "cinny").json()
    assert config["homeserverList"] == config["featuredCommunities"]["servers"] == [domain]
    assert config["defaultHomeserver"] == 0 and config["allowCustomHomeservers"] is False
    assert "matrix.org" not in json.dumps(config)
    for path in ("/", "/index.html", "/config.json", "/sw.js"):
        headers = get(outside, path, "cinny").headers
        assert headers["cache-control"] == "no-cache", path
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["object-src"] == "'none'"
        assert not {"'unsafe-inline'", "'unsafe-eval'", "https:", "*"} & set(policy["script-src"].split())
        servers = {
            f"https://{domain}",
            *(f"{scheme}.{domain}" for scheme in ("https://matrix", "https://rtc", "wss://rtc")),
        }
        assert set(policy["connect-src"].split()) == {"'self'", "blob:", *servers}
    [script] = re.findall(r'src="(/assets/[^"]+[.]js)"', get(outside, "/", "cinny").text)
    assert "immutable" in get(outside, script, "cinny").headers["cache-control"]
    for path in ("/nothing", "/.sum", "/assets/", "/_matrix/client/versions", "/home"):
        assert get(outside, path, "cinny").status_code == 404, path


@pytest.mark.once("debian13")
def test_a_deploy_heals_it(deployed: Deployed, outside: Outside) -> None:
    host, deployment = deployed.host, deployed.deployment
    host.run("echo broken >/opt/element-web/current/index.html; echo '{}' >/etc/element-web/config.json")
    assert deployment.run("-y").changed == ["Configure Element Web", "Install Element Web"]
    assert get(outside, "/").text != "broken\n"
    assert deployment.run("-y").changed == []


# --- stickers -----------------------------------------------------------------------------------------------------------

# What a client does with a picker: a frame, in which it is asked what it wants, and hears what was chosen.
WIDGET_HOST = """(url, id) => new Promise((resolve, reject) => {
  const frame = document.createElement("iframe");
  const ask = (action, data) =>
    frame.contentWindow.postMessage({api: "toWidget", action, widgetId: id, requestId: action, data}, new URL(url).origin);
  window.heard = [];
  window.addEventListener("message", ({source, origin, data}) => {
    if (source !== frame.contentWindow || origin !== new URL(url).origin) return;
    window.heard.push(data);
    if (data.api === "fromWidget") source.postMessage({...data, response: {}}, origin);
    if (data.action === "capabilities") ask("notify_capabilities", {requested: [], approved: data.response.capabilities});
    if (data.action === "notify_capabilities") resolve(window.heard[0].response.capabilities);
  });
  frame.addEventListener("load", () => ask("capabilities", {}));
  frame.src = `${url.replace("$theme", "dark")}&widgetId=${id}&parentUrl=${encodeURIComponent(location.href)}`;
  frame.style = "position: fixed; inset: 0; width: 300px; height: 300px; z-index: 9";
  document.body.append(frame);
  setTimeout(() => reject(new Error("the picker does not answer")), 20000);
})"""


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = zlib.compress((b"\0" + b"\xff\x99\x22" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


# Two pictures of one pixel, again and again; one pixel.
GIF = bytes.fromhex(
    "474946383961010001008000000000ffffff21ff0b4e45545343415045322e300301000000"
    "21f904000a0000002c00000000010001000002024401" + "00" + "21f904000a0000002c00000000010001000002024c01" + "003b"
)
WEBP = base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==")
PICTURES = {"happy_cat.png": _png(64, 48), "wave.gif": GIF, "bean.webp": WEBP}


def sold(deployed: Deployed, *arguments: str) -> Any:
    """What a command for stickers says."""
    done = deployed.deployment.manage("stickers", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.once("debian13")
def test_a_sticker_is_imported_chosen_sent_and_seen(
    deployed: Deployed, outside: Outside, alice: Account, bob: Account, chromium: Host, tmp_path: Path
) -> None:
    folder = tmp_path / "pack"
    folder.mkdir()
    for name, content in {**PICTURES, "notes.txt": b"hello"}.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        for name in PICTURES:
            archive.write(folder / name, f"garden/{name}")

    def ask(who: Account, method: str, path: str, content: Any = None) -> Any:
        with outside.http() as http:
            url = outside.url("matrix", f"/_matrix/client/v3{path}")
            return expect_json(http.request(method, url, headers=who.authorization, json=content))

    room = ask(alice, "POST", "/createRoom", {"invite": [bob.user_id], "preset": "private_chat"})["room_id"]
    ask(bob, "POST", f"/join/{room}", {})
    done = sold(deployed, "import", str(folder), "--name", "Garden", "--room", room)
    assert done["uploaded"] == done["stickers"] == 3 and done["left_out"] == ["notes.txt"] and done["changed"]
    # From an archive they are the same.
    again = sold(deployed, "import", str(tmp_path / "pack.zip"), "--name", "Garden")
    assert again["uploaded"] == 0 and not again["changed"] and again["rooms"] == [room]

    # Another client reads the pack in the room, under its name in the specification and the one before.
    pack = ask(bob, "GET", f"/rooms/{room}/state/m.room.image_pack/Garden")
    assert pack == ask(bob, "GET", f"/rooms/{room}/state/im.ponies.room_emotes/Garden")
    assert pack["pack"] == {"display_name": "Garden", "usage": ["sticker"]}
    assert sorted(pack["images"]) == ["bean", "happy_cat", "wave"]
    cat = pack["images"]["happy_cat"]
    size = len(PICTURES["happy_cat.png"])
    assert cat["info"] == {"w": 64, "h": 48, "mimetype": "image/png", "size": size} and cat["body"] == "happy cat"
    # Who wrote it is gone again, without rights.
    assert sorted(ask(bob, "GET", f"/rooms/{room}/joined_members")["joined"]) == sorted([alice.user_id, bob.user_id])
    assert not [
        each for each in ask(bob, "GET", f"/rooms/{room}/state/m.room.power_levels")["users"] if "metal" in each
    ]

    # The picker comes to the widgets that she has.
    widgets = f"/user/{alice.user_id}/account_data/m.widgets"
    own = {"clock": {"type": "m.widget", "content": {"type": "m.custom", "url": "https://clock.test/"}}}
    ask(alice, "PUT", widgets, own)
    devices = ask(alice, "GET", "/devices")
    assert sold(deployed, "enable", alice.user_id)["changed"] == [alice.user_id]
    assert sold(deployed, "enable", alice.user_id)["unchanged"] == [alice.user_id]
    has = ask(alice, "GET", widgets)
    assert has["clock"] == own["clock"] and len(has) == 2 and ask(alice, "GET", "/devices") == devices
    [widget] = [each for each in has.values() if each["content"]["type"] == "m.stickerpicker"]

    # Her client shows it, and hears what she clicks on.
    with browsing(chromium, outside.root) as browser:
        page = browser.page()
        page.open(outside.url("chat", "/"))
        _until(page, "document.readyState === 'complete' && location.protocol === 'https:'")
        assert page.run(WIDGET_HOST, widget["content"]["url"], widget["id"]) == ["m.sticker"]
        picker = page.frame(outside.url("stickers.chat"))
        _until(picker, "document.querySelectorAll('.grid img').length === 3")
        _until(
            picker, "[...document.querySelectorAll('.grid img')].every((each) => each.complete && each.naturalWidth)"
        )
        page.picture(tmp_path / "picker.png", 390, 400)
        picker.run("document.querySelector('[title=\"happy cat\"]').click()")
        _until(page, "window.heard.some((each) => each.action === 'm.sticker')")
        heard = page.run("window.heard.find((each) => each.action === 'm.sticker')")
    assert heard["widgetId"] == widget["id"] and heard["data"]["name"] == "happy cat"
    content = heard["data"]["content"]
    assert content["url"] == cat["url"] and content["info"].items() >= cat["info"].items()

    # It is sent as clients do; he reads it, and has the picture.
    sent = ask(alice, "PUT", f"/rooms/{room}/send/m.sticker/1", content)["event_id"]
    read = ask(bob, "GET", f"/rooms/{room}/event/{sent}")
    assert read["type"] == "m.sticker" and read["content"]["url"] == cat["url"]
    with outside.http() as http:
        where = outside.url("matrix", f"/_matrix/client/v1/media/download/{cat['url'].removeprefix('mxc://')}")
        assert http.get(where, headers=bob.authorization).content == PICTURES["happy_cat.png"]

    assert sold(deployed, "disable", alice.user_id)["changed"] == [alice.user_id] and ask(alice, "GET", widgets) == own
    assert sold(deployed, "remove", "Garden", "--yes")["changed"]
    assert ask(bob, "GET", f"/rooms/{room}/state/m.room.image_pack/Garden") == {}
    assert get(outside, "/packs.json", "stickers.chat").json() == {"packs": []}
    assert deployed.host.run("ls /var/lib/matrix-stickers/pictures").stdout == ""


def _until(page: Page, condition: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not page.run(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.1)


def test_the_picker_is_for_this_web_client_and_shows_nothing_else(outside: Outside) -> None:
    headers = get(outside, "/", "stickers.chat").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["frame-ancestors"] == outside.url("chat") and "x-frame-options" not in headers
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert headers["cache-control"] == "no-cache" and headers["content-type"].startswith("text/html")
    for path in ("/index.json", "/pictures/", "/pictures/../index.json", "/picker.html.j2", "/_matrix/client/versions"):
        assert get(outside, path, "stickers.chat").status_code == 404, path
