"""Chromium on a throw-away host, as a user runs it: sandboxed, not as root, with the authorities that the user trusts.

It is controlled over the Chrome DevTools Protocol, through the SSH session that started it: it opens no port, and it ends
with the session. https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.testbed import Host

PAGE = Path(__file__).parent / "page"
USER = "admin"
HOME = f"/home/{USER}"

OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    # A test picture and a test tone instead of a camera and a microphone, and no question for permission.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    # No updates, no first-run pages, no keyring.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--password-store=basic",
    # Both pages are in the background.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
)


class PageError(AssertionError):
    """An exception of a page."""


def install(host: Host) -> None:
    """Install Debian's Chromium and our page on a host."""
    host.run(
        "apt-get update --quiet && DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet "
        # libnss3-tools has certutil, which adds authorities to Chromium on Linux.
        "--no-install-recommends -o Dpkg::Options::=--force-unsafe-io chromium libnss3-tools",
        timeout=600,
    )
    host.run(f"install -d -m 755 {HOME}/page")
    for path in PAGE.iterdir():
        host.put(path, f"{HOME}/page/{path.name}")


class Browser:
    """One running Chromium with a profile of its own.

    authorities: files on the controller, each with the certificate of an authority to trust, besides the public ones.
    """

    def __init__(self, host: Host, *authorities: Path) -> None:
        self.host, self.home = host, host.run("mktemp --directory", user=USER).stdout.strip()
        store = f"sql:{self.home}/.pki/nssdb"
        host.run(f"mkdir -p {self.home}/.pki/nssdb && certutil -N --empty-password -d {store}", user=USER)
        for number, each in enumerate(authorities):
            host.run(f"certutil -A -n {number} -t C,, -d {store}", user=USER, stdin=each.read_text())
        command = ["chromium", *OPTIONS, f"--user-data-dir={self.home}/profile", "--remote-debugging-pipe"]
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        script = f"HOME={self.home} exec {shlex.join(command)} 3<&0 4>&1 </dev/null >{self.home}/log 2>&1"
        ssh, *arguments = host.ssh(script, user=USER)
        self.ssh = subprocess.Popen(
            [ssh, "-o", "ControlPath=none", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.numbers = itertools.count(1)
        self.unread = b""
        self.answers: dict[int, dict[str, Any]] = {}

    def page(self) -> Page:
        """Open our page in a new tab."""
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page.do("Page.enable")
        # A file is a secure context, which cameras need, and needs no web server. The command returns after the blank page is
        # left, whose state is "complete" as well.
        page.do("Page.navigate", url=f"file://{HOME}/page/index.html")
        deadline = time.monotonic() + 30
        while page.run("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page does not load"
        return page

    def send(self, method: str, session: str | None = None, **parameters: Any) -> int:
        """Send a command and do not wait for its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        assert self.ssh.stdin
        self.ssh.stdin.write(json.dumps(message).encode() + b"\0")
        return number

    def answer(self, number: int, timeout: float = 30) -> dict[str, Any]:
        """Wait for the result of a command. Raises TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while number not in self.answers:
            message = self._read(deadline)
            if "id" in message:
                self.answers[message["id"]] = message
        answer = self.answers.pop(number)
        assert "error" not in answer, f"Chromium rejected a command: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def do(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        return self.answer(self.send(method, session, **parameters))

    def close(self) -> None:
        """Close the browser."""
        assert self.ssh.stdin and self.ssh.stdout
        with contextlib.suppress(OSError):
            self.ssh.stdin.close()
        try:
            self.ssh.wait(10)
        except subprocess.TimeoutExpired:
            self.ssh.kill()
            self.ssh.wait()
        self.ssh.stdout.close()

    def _read(self, deadline: float) -> dict[str, Any]:
        assert self.ssh.stdout
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.ssh.stdout], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            received = os.read(self.ssh.stdout.fileno(), 1 << 16)
            if not received:
                log = self.host.run(f"tail -n 20 {self.home}/log", check=False).stdout
                raise AssertionError(f"Chromium has ended:\n{log}")
            self.unread += received
        raw, _, self.unread = self.unread.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message


@dataclass(frozen=True)
class Page:
    """A tab, or a frame in one. context: where the frame's scripts run."""

    browser: Browser
    session: str
    context: int | None = None

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.do(method, self.session, **parameters)

    def open(self, url: str) -> None:
        """Leave our page for another one."""
        failed = self.do("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"

    def frame(self, url: str) -> Page:
        """A frame in it, of the same site."""
        [frame] = [
            each["frame"]["id"]
            for each in self.do("Page.getFrameTree")["frameTree"].get("childFrames", [])
            if each["frame"]["url"].startswith(f"{url}/")
        ]
        context = self.do("Page.createIsolatedWorld", frameId=frame)["executionContextId"]
        return Page(self.browser, self.session, context)

    def picture(self, file: Path, width: int, height: int) -> None:
        """What it looks like in a window of this size, as a PNG."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        file.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))

    def start(self, function: str, *arguments: Any) -> int:
        """Call a function with JSON values, or evaluate an expression if there are none; result() waits for it."""
        listed = ", ".join(json.dumps(argument) for argument in arguments)
        expression = f"({function})({listed})" if arguments else function
        where = {"contextId": self.context} if self.context else {}
        return self.browser.send(
            "Runtime.evaluate", self.session, expression=expression, awaitPromise=True, returnByValue=True, **where
        )

    def result(self, number: int, timeout: float = 30) -> Any:
        """What start() returned by this number, once its promise is resolved. Raises PageError and TimeoutError."""
        answer = self.browser.answer(number, timeout)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def run(self, function: str, *arguments: Any, timeout: float = 30) -> Any:
        return self.result(self.start(function, *arguments), timeout)


@contextlib.contextmanager
def browsing(host: Host, *authorities: Path) -> Iterator[Browser]:
    """A running browser, closed at the end."""
    browser = Browser(host, *authorities)
    try:
        yield browser
    finally:
        browser.close()
