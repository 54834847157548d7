"""The page of `nas judge`: two pictures of one caption, three keys. `nas.loopback` says who is answered at all.

Pictures are inside the answers, as data URLs: no address, and no word of the page, says which trial drew one.
"""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jinja2
from pydantic import Field

from nas import loopback
from nas.documents.section import Section
from nas.errors import InputError
from nas.judging.session import Session
from nas.report import page

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TEMPLATES = Path(__file__).parent
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
THREADS = 4


class Given(Section):
    """What a key says."""

    number: int = Field(ge=0, lt=2**31)
    """Of the question that was shown."""
    answer: Literal["left", "tie", "right", "undo"]
    """`undo` takes the answer before that question back."""
    seconds: float = Field(0.0, ge=0, le=86_400)
    """From the pictures to the key."""


def serve(session: Session, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. InputError when the port cannot be had."""
    made = loopback.server("judge", site(session), port, THREADS)
    address = f"http://{loopback.HOST}:{made.effective_port}/"
    say(f"{address}  {session.judge} judges {session.contest.run}; Ctrl-C ends it, the same command goes on")
    if browser:
        webbrowser.open(address)
    loopback.run(made)


def site(session: Session) -> WSGIApplication:
    """The page at /, the open question at /question, and keys at /answer, which gives the next one."""
    html = page_of(session)

    def application(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        if asked == "GET /":
            policy = [("Content-Security-Policy", POLICY)]
            return loopback.answer(start, "200 OK", "text/html; charset=utf-8", html, policy)
        if asked not in ("GET /question", "POST /answer"):
            return loopback.answer(start, "404 Not Found", "text/plain", b"not here")
        try:
            if asked == "POST /answer":
                _record(session, loopback.posted(environ, Given))
            status, content = "200 OK", session.question()
        except InputError as error:
            status, content = "400 Bad Request", {"error": str(error)}
        return loopback.answer(start, status, "application/json", json.dumps(content).encode())

    return application


def page_of(session: Session) -> bytes:
    """The page as HTML: the same for all questions."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    style = (page.PAGES / "page.css").read_text(encoding="utf-8")
    return environment.get_template("judge.html").render(judge=session.judge, style=style).encode()


def _record(session: Session, given: Given) -> None:
    if given.answer == "undo":
        session.undo(given.number)
    else:
        session.answer(given.number, given.answer, given.seconds)
