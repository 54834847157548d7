"""A page on this machine that draws from an export: caption, steps, guidance, seed and runtime in, picture and times out.

POST /draw takes and gives JSON, so that a script can use it as well. Pictures are drawn one after another; one whose client
has left is not drawn to its end. `nas.loopback` says who is answered at all.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from pydantic import Field

from nas import loopback
from nas.deploy import drawer
from nas.diffusion.plan import MOST_GUIDANCE, MOST_STEPS
from nas.documents.section import Section
from nas.errors import InputError
from nas.report import page

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from torch import Tensor
    from waitress.server import BaseWSGIServer

    from nas.deploy.drawer import Drawer
    from nas.deploy.exporters import Network

TEMPLATES = Path(__file__).parent
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
PARTS = ("text_encoder", "denoiser", "decoder")
LONGEST = 2_000  # letters of a caption
WAITING = 8  # draws that are under way or wait; more are told to come again
SPARE = 4  # threads beyond those, for the page
KEPT = 2  # runtimes that stay loaded


class Asked(Section):
    """What is to be drawn. None: as the export was trained, or as the command said."""

    caption: str = Field(max_length=LONGEST)
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)
    guidance: float | None = Field(None, ge=0, le=MOST_GUIDANCE, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**63)
    runtime: str | None = Field(None, max_length=40)
    precision: str | None = Field(None, max_length=40)


class Left(Exception):
    """The client has gone; nobody wants the picture."""


class Busy(Exception):
    """As many draws as may wait are waiting."""


class Artist:
    """An export that draws one picture after another and says how long their parts took."""

    def __init__(self, folder: Path, runtime: str = "auto", precision: str | None = None):
        """`runtime`, `precision`: for requests that name none. Raises InputError when the export cannot be drawn from."""
        self.folder, self.choice = folder, drawer.chosen(folder, runtime, precision)
        self._drawer = functools.lru_cache(KEPT)(functools.partial(drawer.load, folder))
        self._places = threading.BoundedSemaphore(WAITING)
        self._hand = ThreadPoolExecutor(1, "draw")  # one thread, so that PyTorch and the runtimes start theirs once
        self.plan = self._drawer(*self.choice).plan

    def draw(self, asked: Asked, left: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """The picture as PNG in a data URL, milliseconds and calls of each part, and notes.

        `left` tells whether the client has gone. Raises InputError, Left and Busy.
        """
        drawer.check_captions([asked.caption])
        choice = self.choice
        if asked.runtime or asked.precision:
            choice = drawer.chosen(self.folder, asked.runtime or "auto", asked.precision)
        if not self._places.acquire(blocking=False):
            raise Busy(f"{WAITING} draws are under way or waiting; ask again when some are done")
        try:
            return self._hand.submit(self._drawn, choice, asked, left).result()
        finally:
            self._places.release()

    def _drawn(self, choice: tuple[str, str], asked: Asked, left: Callable[[], bool]) -> dict[str, Any]:
        drawer, spent = watched(self._drawer(*choice), left)
        began = time.perf_counter()
        (image,) = drawer.draw([asked.caption], asked.seed, asked.steps, asked.guidance)
        total = time.perf_counter() - began
        return {
            "picture": data_url(image),
            "size": list(image.shape[:0:-1]),
            "parts": {name: {"ms": 1e3 * sum(calls), "calls": len(calls)} for name, calls in spent.items()},
            "total_ms": 1e3 * total,
            "notes": drawer.too_long([asked.caption]),
        }


def part_of(network: str) -> str:
    """What a network's time counts as: the graphs that take turns by a plan with a cache are all the denoiser."""
    return network if network in PARTS else "denoiser"


def watched(drawer: Drawer, left: Callable[[], bool]) -> tuple[Drawer, dict[str, list[float]]]:
    """The same drawer, which raises Left at the next call of a network once the client has gone, and the seconds of each call
    from now on, by part."""
    spent: dict[str, list[float]] = {name: [] for name in PARTS}

    def timed(name: str, network: Network) -> Network:
        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if left():
                raise Left
            began = time.perf_counter()
            outputs = network(inputs)
            spent[part_of(name)].append(time.perf_counter() - began)
            return outputs

        return run

    networks = {name: timed(name, network) for name, network in drawer.networks.items()}
    return replace(drawer, networks=networks), spent


def data_url(image: Tensor) -> str:
    """One picture (3, H, W) in [-1, 1]."""
    from torchvision.transforms.functional import to_pil_image

    buffer = io.BytesIO()
    to_pil_image(image.clamp(-1, 1) / 2 + 0.5).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def server(folder: Path, port: int, runtime: str = "auto", precision: str | None = None) -> BaseWSGIServer:
    """A server of the page at the loopback address, listening but not yet running; port 0 is any free one.

    Raises InputError when the export cannot be drawn from, or the port cannot be had.
    """
    artist = Artist(folder, runtime, precision)
    return loopback.server("serve", Site(page_of(folder, artist), artist.draw), port, WAITING + SPARE)


def serve(folder: Path, port: int, runtime: str, precision: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C."""
    made = server(folder, port, runtime, precision)
    say(f"http://{loopback.HOST}:{made.effective_port}/  draws from {folder}; Ctrl-C ends it")
    loopback.run(made)


def page_of(folder: Path, artist: Artist) -> bytes:
    """The page as HTML."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    facts = {
        "name": folder.resolve().name,
        "folder": str(folder),
        "choices": drawer.choices(folder),
        "first": artist.choice,
        "plan": artist.plan,
        "longest": LONGEST,
        "example": drawer.examples(folder)[0],
        "most_steps": MOST_STEPS,
        "most_guidance": MOST_GUIDANCE,
        "style": (page.PAGES / "page.css").read_text(encoding="utf-8"),
    }
    return environment.get_template("serve.html").render(facts).encode()


class Site:
    """The WSGI application: the page at /, and what `draw` gives at /draw."""

    def __init__(self, page: bytes, draw: Callable[[Asked, Callable[[], bool]], dict[str, Any]]):
        self._page, self._draw = page, draw

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        asked = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if asked == ("GET", "/"):
            policy = [("Content-Security-Policy", POLICY)]
            return loopback.answer(start, "200 OK", "text/html; charset=utf-8", self._page, policy)
        if asked == ("POST", "/draw"):
            status, content = self._drawn(environ)
            return loopback.answer(start, status, "application/json", json.dumps(content).encode())
        return loopback.answer(start, "404 Not Found", "text/plain", b"not here")

    def _drawn(self, environ: WSGIEnvironment) -> tuple[str, dict[str, Any]]:
        left = environ.get("waitress.client_disconnected", lambda: False)
        try:
            return "200 OK", self._draw(loopback.posted(environ, Asked), left)
        except InputError as error:
            return "400 Bad Request", {"error": str(error)}
        except Busy as error:
            return "503 Service Unavailable", {"error": str(error)}
        except Left:
            return "503 Service Unavailable", {"error": "the client has left"}
