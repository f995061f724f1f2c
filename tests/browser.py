"""A headless Chromium for tests, driven by chromedriver over the W3C WebDriver protocol: urllib is all it takes."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
KEYS = {"space": " ", "left": "\ue012", "right": "\ue014", "home": "\ue011", "end": "\ue010", "tab": "\ue004",
        "shift": "\ue008"}
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
          "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """One window; close it."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True)
        try:
            self._begin()
        except BaseException:
            self._end()
            raise

    def _begin(self) -> None:
        said = iter(self._driver.stdout.readline, "")
        [port] = next(found for line in said if (found := re.findall(r"successfully on port (\d+)", line)))
        self._root = f"http://127.0.0.1:{port}/session"
        args = [*_FLAGS, f"--user-data-dir={self._profile.name}"]
        wanted = {"goog:chromeOptions": {"binary": CHROMIUM, "args": args},
                  "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self._root += "/" + self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self.open("about:blank")  # instead of the start page, which loads this and that

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._end()

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.wait(10)
        self._driver.stdout.close()
        self._profile.cleanup()

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *args):
        """What the body of a function in JavaScript returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": args})

    def wait(self, script: str, seconds: float = 10.0):
        """Until the script returns something true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.02)
        return value

    def press(self, *names: str) -> None:
        """Keys, all down together and up again, wherever the focus is."""
        down = [{"type": "keyDown", "value": KEYS[name]} for name in names]
        up = [{"type": "keyUp", "value": KEYS[name]} for name in reversed(names)]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": down + up}]})

    def click(self, selector: str, dx: int = 0, dy: int = 0) -> None:
        """A click of the mouse, so far from the middle of the element."""
        [(_, element)] = self._call("POST", "/element", {"using": "css selector", "value": selector}).items()
        move = {"type": "pointerMove", "x": dx, "y": dy,
                "origin": {"element-6066-11e4-a52e-4f735466cecf": element}}
        presses = [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move, *presses]}]})

    def size(self, width: int, height: int, scale: float = 1) -> None:
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                      mobile=width < 500)

    def prefer(self, **features: str) -> None:
        """What the user prefers, e.g. color_scheme="dark", reduced_motion="reduce"."""
        self.devtools("Emulation.setEmulatedMedia", features=[
            {"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()])

    def devtools(self, command: str, **params):
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def log(self, kind: str) -> list[dict]:
        """What was logged since the last call, in the console ("browser") or by the devtools ("performance")."""
        return self._call("POST", "/se/log", {"type": kind})

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("GET", "/screenshot"))

    def _call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with _DIRECT.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from None
