"""A headless Chromium driven over its pipe (the DevTools protocol, file descriptors 3 and 4): no further package."""

import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "about:blank")


class Page:
    """One tab."""

    def __init__(self, send, receive):
        self._send, self._receive, self._count, self._session = send, receive, 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method, **params):
        """The result of one command; its error is an AssertionError."""
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        self._send.write(
            json.dumps({"id": self._count, "method": method, "params": params, **session}).encode() + b"\0"
        )
        self._send.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self):
        found = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "Chromium went away"
            found += byte
        return bytes(found)

    def resize(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, expression):
        """What an expression of JavaScript gives, as plain values."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, path, until, seconds=60):
        """Open a file, or an address, and wait until an expression is true; returns the seconds that took."""
        began = time.monotonic()
        self.call("Page.navigate", url=str(path) if "://" in str(path) else f"file://{path}")
        self.wait(until, seconds)
        return time.monotonic() - began

    def wait(self, until, seconds=30):
        end = time.monotonic() + seconds
        while not self.value(f"Boolean({until})"):
            assert time.monotonic() < end, f"never became true: {until}"
            time.sleep(0.05)

    def click(self, x, y):
        """A real press and release of the left button, after the pointer moved there."""
        for kind, buttons in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)
            time.sleep(0.15)


@contextmanager
def browser(folder):
    """A Page of a browser that keeps its files in the folder."""
    to_read, to_write = os.pipe(), os.pipe()  # ours to theirs, theirs to ours
    command = f'exec "$0" "$@" 3<&{to_read[0]} 4>&{to_write[1]}'
    process = subprocess.Popen(
        ["bash", "-c", command, PATH, *FLAGS[:-1], f"--user-data-dir={folder}", FLAGS[-1]],
        pass_fds=(to_read[0], to_write[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read[0])
    os.close(to_write[1])
    with os.fdopen(to_read[1], "wb") as send, os.fdopen(to_write[0], "rb") as receive:
        try:
            yield Page(send, receive)
        finally:
            process.terminate()
            process.wait(20)
