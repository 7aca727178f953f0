"""A person's browser on another machine: Debian's Chromium, driven through its own WebDriver server.

It finds the deployment by its public names, and trusts only the authorities that it was given.
"""

import base64
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from tests.e2e.client import TIMEOUT
from tests.testbed import Host

INSTALL = """
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends chromium chromium-driver curl libnss3-tools fonts-dejavu-core {more}
"""
START = """
systemd-run --quiet --collect --unit=chromedriver -p User=admin -p WorkingDirectory=/home/admin \
    chromedriver --port=9515 --allowed-ips={allowed}
until curl -sf http://127.0.0.1:9515/status >/dev/null; do sleep 0.1; done
"""
TRUST = """
database=sql:/home/admin/.pki/nssdb
mkdir -p /home/admin/.pki/nssdb
[ -e /home/admin/.pki/nssdb/cert9.db ] || certutil -d $database -N --empty-password
certutil -d $database -D -n {name} 2>/dev/null || true
certutil -d $database -A -t C,, -n {name} -i {file}
chown -R admin /home/admin/.pki
"""
PHONE, DESKTOP = (390, 844), (1280, 900)
# How the browser says that the page is just being replaced.
_CHANGING = "no such element|stale element|does not belong to the document"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Phone:
    """A machine with a browser. more: other Debian packages for it."""

    def __init__(self, host: Host, more: Sequence[str] = ()) -> None:
        self.host = host
        host.run(INSTALL.format(more=" ".join(more)), timeout=590)
        host.run(START.format(allowed=host.bed.bridge_address))

    def trust(self, name: str, authority: Path) -> None:
        """The browser trusts this authority from its next start."""
        file = f"/usr/local/share/{name}.crt"
        self.host.put(authority, file)
        self.host.run(TRUST.format(name=name, file=file))

    @contextmanager
    def browser(self, size: tuple[int, int] = PHONE) -> Iterator["Browser"]:
        """A browser that was not used before."""
        with httpx.Client(base_url=f"http://{self.host.address}:9515", trust_env=False, timeout=TIMEOUT) as http:
            options = {"args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
            session = _value(http.post("/session", json={"capabilities": {"alwaysMatch": wanted}}))["sessionId"]
            browser = Browser(http, f"/session/{session}")
            browser.resize(size)
            try:
                yield browser
            finally:
                http.delete(f"/session/{session}")


class Browser:
    """One browser window."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http, self._session = http, session

    def _do(self, path: str, **words: Any) -> Any:
        return _value(self._http.post(f"{self._session}/{path}", json=words))

    def resize(self, size: tuple[int, int]) -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self._do("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)

    def open(self, url: str) -> None:
        self._do("url", url=url)

    @property
    def url(self) -> str:
        return str(_value(self._http.get(f"{self._session}/url")))

    @property
    def text(self) -> str:
        """What can be read on the page."""
        return str(self._do("execute/sync", script="return document.body.innerText", args=[]))

    def has(self, selector: str) -> bool:
        return bool(self._do("elements", using="css selector", value=selector))

    def shows(self, selector: str) -> bool:
        """Whether it is there, or comes: the page may be about to change."""
        deadline = time.monotonic() + TIMEOUT
        while not self.has(selector) and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.has(selector)

    def says(self, text: str) -> bool:
        """Whether the text is there, or comes."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.text and time.monotonic() < deadline:
            time.sleep(0.1)
        return text in self.text

    def wait_until_gone(self, selector: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self.has(selector):
            assert time.monotonic() < deadline, f"{self.url} still shows {selector}:\n{self.text}"
            time.sleep(0.1)

    def fill(self, **fields: str) -> None:
        """Type into the fields of these names."""
        for name, text in fields.items():
            self._with(f"input[name={name}]", "clear")
            self._with(f"input[name={name}]", "value", text=text)

    def press(self, selector: str = "form button[type=submit]") -> None:
        """Click, as a person does."""
        self._with(selector, "click")

    def _with(self, selector: str, action: str, **words: str) -> None:
        """Do something with an element, once it is there."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                element = self._do("element", using="css selector", value=selector)[_ELEMENT]
                self._do(f"element/{element}/{action}", **words)
                return
            except AssertionError as error:
                # The next page has not come yet, or comes just now.
                if not re.search(_CHANGING, str(error)) or time.monotonic() > deadline:
                    raise AssertionError(f"{error}\non {self.url}:\n{self.text}") from None
                time.sleep(0.1)

    def sent_to(self, scheme: str) -> dict[str, str]:
        """What a page has sent to the application with this scheme, which is not in the browser: the query of the URL."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            for line in self._do("se/log", type="performance"):
                message = json.loads(line["message"])["message"]
                headers = message["params"].get("headers", {})
                location = {name.lower(): value for name, value in headers.items()}.get("location", "")
                if message["method"] == "Network.responseReceivedExtraInfo" and location.startswith(f"{scheme}:"):
                    return dict(parse_qsl(urlsplit(location).query))
            # The answer has not come yet.
            time.sleep(0.1)
        raise AssertionError(f"no page has sent anything to {scheme}: it shows {self.url}:\n{self.text}")

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(_value(self._http.get(f"{self._session}/screenshot"))))


def _value(response: httpx.Response) -> Any:
    value = response.json()["value"]
    assert response.status_code == 200, re.sub(r"\n#.*", "", str(value.get("message", value)))
    return value
