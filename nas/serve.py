"""A page on this machine that draws from an export: caption, steps, guidance and seed in, picture and times out.

It is Python's own HTTP server, bound to the loopback address; a request that was made for another host's name, or comes as a form
of another site's page, is refused. POST /draw takes and gives JSON, so that a script can use it as well.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas import drawing
from nas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from nas.drawing import Drawer
    from nas.exporters import Network

HOST = "127.0.0.1"
PAGES = Path(__file__).parent / "pages"
LARGEST = 65_536  # bytes of a request
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
PARTS = ("text_encoder", "denoiser", "decoder")


class Asked(BaseModel):
    """What is to be drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: str
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**63)


class Artist:
    """An export that draws one picture at a time and says how long its parts took."""

    def __init__(self, drawer: Drawer):
        self.drawer = drawer
        self._turn = threading.Lock()

    def draw(self, asked: Asked) -> dict[str, Any]:
        """The picture as PNG in a data URL, milliseconds and calls of each part, and notes. Raises InputError."""
        drawing.check_captions([asked.caption])
        with self._turn:
            drawer, spent = timed(self.drawer)
            began = time.perf_counter()
            (image,) = drawer.draw([asked.caption], asked.seed, asked.steps, asked.guidance)
            total = time.perf_counter() - began
        return {
            "picture": data_url(image),
            "size": list(image.shape[:0:-1]),
            "parts": {name: {"ms": 1e3 * sum(calls), "calls": len(calls)} for name, calls in spent.items()},
            "total_ms": 1e3 * total,
            "notes": self.drawer.too_long([asked.caption]),
        }


def timed(drawer: Drawer) -> tuple[Drawer, dict[str, list[float]]]:
    """The same drawer, and the seconds each call of its networks takes from now on."""
    spent: dict[str, list[float]] = {name: [] for name in PARTS}

    def watched(name: str, network: Network) -> Network:
        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            began = time.perf_counter()
            outputs = network(inputs)
            spent[name].append(time.perf_counter() - began)
            return outputs

        return run

    networks = {name: watched(name, network) for name, network in drawer.networks.items()}
    return replace(drawer, networks=networks), spent


def data_url(image: Tensor) -> str:
    """One picture (3, H, W) in [-1, 1]."""
    from torchvision.transforms.functional import to_pil_image

    buffer = io.BytesIO()
    to_pil_image(image.clamp(-1, 1) / 2 + 0.5).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def server(folder: Path, port: int, runtime: str = "auto", precision: str | None = None) -> ThreadingHTTPServer:
    """A server of the page at the loopback address, not yet running; port 0 is any free one.

    Raises InputError when the export cannot be drawn from, or the port is taken.
    """
    drawer = drawing.load(folder, runtime, precision)
    page = page_of(folder, drawer, runtime)
    artist = Artist(drawer)
    try:
        return ThreadingHTTPServer((HOST, port), handler(page, artist.draw))
    except OSError as error:
        raise InputError(
            f"serve: cannot listen on {HOST}:{port}: {error.strerror}; choose another with --port"
        ) from None


def serve(folder: Path, port: int, runtime: str, precision: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C."""
    made = server(folder, port, runtime, precision)
    say(f"http://{HOST}:{made.server_port}/  draws from {folder}; Ctrl-C ends it")
    try:
        made.serve_forever()
    except KeyboardInterrupt:
        say("")
    finally:
        made.server_close()


def page_of(folder: Path, drawer: Drawer, runtime: str) -> bytes:
    """The page as HTML."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGES), autoescape=True)
    held = drawing.runtimes(folder)
    _, height, width = drawer.latents
    facts = {
        "name": folder.resolve().name,
        "folder": str(folder),
        "runtime": next(iter(held)) if runtime == "auto" else runtime,
        "plan": drawer.plan,
        "latents": f"{height} x {width}",
        "style": (PAGES / "page.css").read_text(encoding="utf-8"),
    }
    return environment.get_template("serve.html").render(facts).encode()


def handler(page: bytes, draw: Callable[[Asked], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    """Answers requests with the page, or with what `draw` gives."""

    class Handler(BaseHTTPRequestHandler):
        server: ThreadingHTTPServer

        def do_GET(self) -> None:
            if not self._is_ours():
                return
            if self.path.partition("?")[0] != "/":
                return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not here")
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page)

        def do_POST(self) -> None:
            if not self._is_ours():
                return
            if self.path != "/draw":
                return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not here")
            try:
                self._json(HTTPStatus.OK, draw(self._asked()))
            except InputError as error:
                self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})

        def _is_ours(self) -> bool:
            """Whether the request names this server: a page of another site may reach the port under a name of its own."""
            port = self.server.server_port
            if self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}"):
                return True
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"expected a request to this machine")
            return False

        def _asked(self) -> Asked:
            length = self.headers.get("Content-Length", "")
            if self.headers.get_content_type() != "application/json" or not length.isdigit() or int(length) > LARGEST:
                raise InputError(f"/draw: expected JSON of at most {LARGEST} bytes (Content-Type: application/json)")
            try:
                return Asked.model_validate_json(self.rfile.read(int(length)))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "/draw"
                raise InputError(
                    f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r}"
                ) from None

        def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
            self._send(status, "application/json", json.dumps(content).encode())

        def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Content-Security-Policy", POLICY),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing is logged: captions are the user's."""

    return Handler
