"""A headless Chromium that a test can drive, over the browser's own pipe: no driver, no port, no package.

Names of other hosts do not resolve inside it, so a page that needs the network fails visibly, and every request a
page makes is recorded.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --mute-audio "
    "--disable-background-networking --disable-component-update --disable-sync --disable-default-apps "
    "--allow-file-access-from-files --remote-debugging-pipe"
).split()


def executable() -> str | None:
    """The browser on this machine, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Page:
    """What happened while a page loaded, and a way to ask it more."""

    browser: "Browser"
    session: str
    requests: list[str] = field(default_factory=list)  # every address asked for
    failed: list[str] = field(default_factory=list)  # addresses that did not load, with the reason
    errors: list[str] = field(default_factory=list)  # console errors and uncaught exceptions

    def evaluate(self, expression: str):
        """The value of a JavaScript expression, awaited if it is a promise."""
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.browser.call("Runtime.evaluate", options, self)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        picture = self.browser.call("Page.captureScreenshot", {"format": "png"}, self)["data"]
        Path(path).write_bytes(base64.b64decode(picture))


class Browser:
    """One Chromium; `open` gives pages, one at a time."""

    def __init__(self, process: subprocess.Popen, to_browser: int, from_browser: int):
        self.process, self._write, self._read = process, to_browser, from_browser
        self._buffer, self._numbers = b"", itertools.count(1)

    def _message(self, deadline: float) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError(f"no answer from the browser (exit status {self.process.poll()})")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, params: dict | None = None, page: Page | None = None, timeout: float = 60) -> dict:
        """One command of the DevTools protocol, and its result; events that come meanwhile go to `page`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params or {}}
        if page:
            message["sessionId"] = page.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while (answer := self._message(deadline)).get("id") != number:
            _record(page, answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    @contextmanager
    def open(self, address: str, *, width: int = 1280, height: int = 900, scheme: str = "light", timeout: float = 60):
        """Load a page and wait until it is done: loaded, mathematics set, fonts there."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        colours = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", page=page)
        self.call("Emulation.setDeviceMetricsOverride", size, page)
        self.call("Emulation.setEmulatedMedia", colours, page)
        self.call("Page.navigate", {"url": address}, page)
        deadline = time.monotonic() + timeout
        while (event := self._message(deadline)).get("method") != "Page.loadEventFired":
            _record(page, event)
        page.evaluate("Promise.all([document.fonts.ready, window.MathJax?.startup?.promise])")
        page.evaluate("new Promise(done => setTimeout(done, 100))")  # requests that scripts make on their own
        yield page
        self.call("Target.closeTarget", {"targetId": target}, page)


def _record(page: Page | None, event: dict) -> None:
    if page is None or event.get("sessionId") != page.session:
        return
    method, params = event["method"], event["params"]
    if method == "Network.requestWillBeSent":
        page.requests.append(params["request"]["url"])
    elif method == "Network.loadingFailed" and not params.get("canceled"):
        page.failed.append(params["errorText"])
    elif method == "Runtime.exceptionThrown":
        page.errors.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
        page.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
    elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
        page.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


def _pipe() -> tuple[int, int]:
    """A pipe with both ends above descriptors 3 and 4, on which Chromium reads commands and answers."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return high


@contextmanager
def chromium():
    """A running browser with a profile of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="spectro-browser-", ignore_cleanup_errors=True) as profile:
        commands_out, commands_in = _pipe()
        answers_out, answers_in = _pipe()
        private = (f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND")
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands_out} 4>&{answers_in}', "bash", executable(), *FLAGS, *private],
            pass_fds=(commands_out, answers_in),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(answers_in)
        try:
            yield Browser(process, commands_in, answers_out)
        finally:
            os.close(commands_in)
            os.close(answers_out)
            process.terminate()
            process.wait(timeout=30)
