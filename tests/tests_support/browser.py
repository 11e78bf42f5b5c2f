"""Headless Chromium, driven through the DevTools protocol over a pipe: no port, no library."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may be run by root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--allow-pre-commit-input",  # else keys are dropped until something is painted
    "--remote-debugging-pipe",
)
# The protocol's pipe is descriptors 3 and 4 of the browser.
LAUNCH = """
import os, sys
r, w, *command = sys.argv[1:]
r, w = os.dup(int(r)), os.dup(int(w))  # before 3 and 4 are taken from whoever has them
for end, name in ((r, 3), (w, 4)):
    os.dup2(end, name) if end != name else os.set_inheritable(name, True)
os.execvp(command[0], command)
"""
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "Backspace": 8}
TYPED = {"Enter": "\r", " ": " "}
CTRL, SHIFT = 2, 8


class MissingBrowserError(Exception):
    """There is no Chromium on this machine."""


def program() -> str:
    """Where Chromium is: what ``scripts/browser`` says.

    Raises:
        MissingBrowserError: as its last line says.
    """
    script = Path(__file__).parents[2] / "scripts" / "browser"
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        raise MissingBrowserError(done.stderr.strip().rpartition("\n")[2])
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


class Page:
    """One tab, and what happened in it."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = send
        self._receive = receive
        self._scripted: dict[str, Any] = {}
        self._rest = b""
        self._numbers = itertools.count(1)
        self._session = ""
        self.console: list[str] = []
        """Errors and warnings of the console, broken policies among them, and exceptions."""
        self.requests: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Fetch"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = self._start(method, **params)
        while (answer := self._next()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def _start(self, method: str, **params: Any) -> int:
        message: dict[str, Any] = {"id": next(self._numbers), "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        return int(message["id"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._receive, 1 << 16)
            if not part:
                raise RuntimeError("the browser ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.console.append(str(params["args"]))
            case "Runtime.exceptionThrown":
                self.console.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.console.append(f"{params['entry']['text']} {params['entry'].get('url')}")
            case "Network.requestWillBeSent":
                self.requests.append(params["request"])
            case "Fetch.requestPaused":
                request = {"requestId": params["requestId"]}
                path = urlsplit(params["request"]["url"]).path
                if path in self._scripted:
                    self._start("Fetch.fulfillRequest", **request, **self._scripted[path])
                else:
                    self._start("Fetch.continueRequest", **request)

    def answer(self, path: str, body: str, status: int = 200, **headers: str) -> None:
        """From now on give this answer to requests of a path, in the server's place."""
        self._scripted[path] = {
            "responseCode": status,
            "responseHeaders": [
                {"name": n.replace("_", "-"), "value": v} for n, v in headers.items()
            ],
            "body": base64.b64encode(body.encode()).decode(),
        }

    def forget(self) -> None:
        """Start anew: nothing noted, no answers of our own."""
        self._scripted.clear()
        self.console.clear()
        self.requests.clear()

    def open(self, url: str) -> None:
        """Go there and wait until the document is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")
        self.js("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")  # painted

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> Any:
        """Wait until an expression is true; returns its value.

        Raises:
            TimeoutError: it did not become true.
        """
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} is {value!r}; console: {self.console}")
            time.sleep(0.02)
        return value

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and let go of a key."""
        code = KEYS.get(key, 0)
        event = {"key": key, "modifiers": modifiers, "windowsVirtualKeyCode": code}
        text = {} if modifiers & CTRL else {"text": TYPED.get(key, "")}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Type where the focus is."""
        self.call("Input.insertText", text=text)

    def tab_to(self, name: str) -> None:
        """Press Tab until the element of this id has the focus."""
        for _ in range(40):
            if self.js("document.activeElement.id") == name:
                return
            self.press("Tab")
        raise AssertionError(f"Tab never reaches #{name}")

    def screenshot(self, path: Path) -> None:
        """A PNG of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def size(self, width: int, height: int, *, scale: float = 1, dark: bool = False) -> None:
        """The window's size in CSS pixels, and whether the system is set to dark colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])


@contextmanager
def browse(program: str, profile: Path) -> Iterator[Page]:
    """A browser with a fresh profile; ended with the context."""
    to_browser, send = os.pipe()
    receive, from_browser = os.pipe()
    launch = [sys.executable, "-c", LAUNCH, str(to_browser), str(from_browser)]
    process = subprocess.Popen(
        [*launch, program, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Page(send, receive)
    finally:
        os.close(send)  # the end of the pipe ends the browser
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(receive)
