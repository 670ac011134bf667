"""A real Chromium, driven by W3C WebDriver, which is JSON over HTTP: nothing to install but Debian's two packages."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ENTER, ESCAPE, TAB, SHIFT = "\ue007", "\ue00c", "\ue004", "\ue008"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-device-scale-factor=1"]


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self.session = session

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return _send(method, f"{self.session}{path}", body)

    def open(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, css: str) -> str:
        found: dict[str, str] = self.call("POST", "/element", {"using": "css selector", "value": css})
        return found[_ELEMENT]

    def click(self, css: str) -> None:
        self.call("POST", f"/element/{self.find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        self.call("POST", f"/element/{self.find(css)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys together, wherever the focus is."""
        actions = [{"type": "keyDown", "value": key} for key in keys]
        actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def text(self, css: str) -> str:
        """What is seen of an element."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def wait(self, condition: str, *arguments: Any, seconds: float = 10) -> Any:
        """Wait until an expression of JavaScript is true; gives its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return ({condition})", *arguments)):
            if time.monotonic() > end:
                raise AssertionError(f"not true within {seconds} s: {condition} {arguments}\n{self.text('body')}")
            time.sleep(0.02)
        return value

    def wait_for(self, text: str, css: str = "body") -> None:
        """Wait until a text is seen in an element."""
        self.wait("document.querySelector(arguments[0])?.innerText.includes(arguments[1])", css, text)

    def device(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the screen, and its scheme of colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.call("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """What the console has said since it was asked last: errors of scripts, of loading, of the policy."""
        entries = self.call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@contextmanager
def browsing() -> Iterator[Browser]:
    """A Chromium of its own, which ends with the context."""
    driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, encoding="utf-8")
    try:
        lines = iter(driver.stdout or ())
        port = next(match[1] for line in lines if (match := re.search(r"started successfully on port (\d+)", line)))
        options = {"binary": CHROMIUM, "args": _FLAGS}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        root = f"http://127.0.0.1:{port}/session"
        made = _send("POST", root, {"capabilities": {"alwaysMatch": wanted}})
        browser = Browser(f"{root}/{made['sessionId']}")
        try:
            yield browser
        finally:
            browser.call("DELETE", "")
    finally:
        driver.terminate()
        driver.communicate()


def _send(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]
    except HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None
