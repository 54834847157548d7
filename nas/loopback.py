"""Pages for this machine alone: what `nas serve`, `nas judge` and `nas dashboard` are served by.

The server is waitress. It reads a request to its end before a thread sees it, within bounds of size and time, and knows when
a client has left. A request made for another host's name is refused: a stranger's page may have a name of its own lead to
127.0.0.1 (DNS rebinding), and the browser would then let it read what is answered.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import waitress
from pydantic import BaseModel, ValidationError

from nas.errors import InputError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from waitress.server import BaseWSGIServer

HOST = "127.0.0.1"
Model = TypeVar("Model", bound=BaseModel)
OURS = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]+)?", re.IGNORECASE)  # any port: a tunnel may begin at another one
LARGEST = 65_536  # bytes of a request's body
SILENT_S = 30  # without a byte from a client, before its connection is closed


def server(
    what: str, application: WSGIApplication, port: int, threads: int, silent_s: int = SILENT_S
) -> BaseWSGIServer:
    """A server at the loopback address, listening but not yet running; port 0 is any free one (`effective_port`).

    `what`: the verb, for the line of the InputError when the port cannot be had.
    """
    logging.getLogger("waitress").setLevel(logging.ERROR)  # that requests wait, or clients leave, is no news
    try:
        return waitress.create_server(
            refusing_strangers(application),
            host=HOST,
            port=port,
            threads=threads,
            backlog=128,
            max_request_body_size=LARGEST + 1,  # it refuses from there on
            channel_timeout=silent_s,
            cleanup_interval=min(silent_s, 10),
            channel_request_lookahead=1,  # a client's leaving is noticed while its request is answered
            log_socket_errors=False,
            ident=None,
        )
    except OSError as error:
        raise InputError(
            f"{what}: cannot listen on {HOST}:{port}: {error.strerror}; choose another with --port"
        ) from None


def run(made: BaseWSGIServer) -> None:
    """Serve until Ctrl-C; whoever is still connected is let go."""
    try:
        made.run()
    finally:
        for channel in list(made.active_channels.values()):
            channel.handle_close()
        made.close()


def refusing_strangers(application: WSGIApplication) -> WSGIApplication:
    """The application, for requests whose Host is a name of this machine; 403 for any other and for none."""

    def checked(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if OURS.fullmatch(environ.get("HTTP_HOST", "")):
            return application(environ, start)
        return answer(start, "403 Forbidden", "text/plain", b"expected a request to this machine")

    return checked


def answer(
    start: Callable[..., Any], status: str, kind: str, body: bytes, headers: Iterable[tuple[str, str]] = ()
) -> list[bytes]:
    """A whole answer; a browser takes its kind as it is given, and keeps nothing."""
    lines = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start(status, [*lines, ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), *headers])
    return [body]


def posted(environ: WSGIEnvironment, model: type[Model]) -> Model:
    """The JSON in the body of a request. Raises InputError, one line that does not repeat the request.

    A stranger's page cannot send that kind of content unasked.
    """
    path = environ["PATH_INFO"]
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
        raise InputError(f"{path}: expected JSON (Content-Type: application/json)")
    try:
        return model.model_validate_json(environ["wsgi.input"].read())
    except ValidationError as error:
        raise InputError(_told(error.errors(include_url=False)[0], path)) from None


def _told(error: Mapping[str, Any], path: str) -> str:
    """The key, what is wrong with it, and the value where that is a number or a word."""
    where = ".".join(map(str, error["loc"]))[:40] or path
    given = error["input"]
    short = isinstance(given, float) or (isinstance(given, int) and given.bit_length() <= 64)
    short |= isinstance(given, str) and len(given) <= 40 and error["type"] != "json_invalid"
    return f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}{f', got {given!r}' if short else ''}"
