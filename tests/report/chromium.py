"""A headless Chromium driven over a pipe, with the standard library alone: the DevTools protocol, a JSON a message."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 90.0


def executable() -> str | None:
    """Where Chromium is, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """One page. ``events`` are all that the browser told, in order."""

    def __init__(self, folder: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--hide-scrollbars",
            f"--user-data-dir={folder}",
        ]
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'  # the two ends that the browser takes
        self._process = subprocess.Popen(
            ["bash", "-c", script, "-", str(executable()), *options],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = ""
        try:
            self.ask("Browser.close")
            self._process.wait(20)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The browser's answer to a command."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while True:
            told = self._message(until)
            if told.get("id") == number:
                assert "error" not in told, told
                found: dict[str, Any] = told["result"]
                return found

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """Opens a file at this width and waits until it is loaded."""
        mobile = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.ask("Page.navigate", url=page.resolve().as_uri())
        self.until(lambda: self.value("document.readyState === 'complete'"))

    def until(self, true: Callable[[], Any]) -> None:
        """Asks again and again until it is true."""
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, "the page did not get there"
            self.value("new Promise(done => setTimeout(done, 50))")  # the page draws meanwhile

    def value(self, expression: str) -> Any:
        """What an expression is on the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Moves the mouse there."""
        for place in (x - 3, x):
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=place, y=y)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def requests(self) -> list[str]:
        """The addresses of all that was asked for, beyond what stands in the page itself."""
        sent = [event["params"]["request"]["url"] for event in self.events if event["method"] == REQUEST]
        return [url for url in sent if not url.startswith(("data:", "blob:"))]

    def complaints(self) -> list[Any]:
        """Errors and warnings of the console, and exceptions."""
        return [event["params"] for event in self.events if _complains(event)]

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser is silent"
            data = os.read(self._read, 2**20)
            if not data:
                raise EOFError("the browser has ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        if "method" in told:
            self.events.append(told)
        return told


REQUEST = "Network.requestWillBeSent"


def _complains(event: dict[str, Any]) -> bool:
    method, params = event["method"], event["params"]
    if method == "Runtime.consoleAPICalled":
        return params["type"] in ("error", "warning", "assert")
    return method == "Runtime.exceptionThrown" or (
        method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning")
    )
