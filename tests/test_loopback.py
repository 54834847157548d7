"""What is served on this machine: to whom, within which bounds, and what a client can do to the others."""

import contextlib
import logging
import socket
import threading

import pytest
from served import asked, running

from nas import loopback
from nas.errors import InputError


def plain(environ, start):
    return loopback.answer(start, "200 OK", "text/plain", environ["wsgi.input"].read() or b"here")


@pytest.fixture(scope="module")
def port():
    with running(loopback.server("test", plain, 0, threads=2)) as found:
        yield found


def sent(port, text):
    """The first line of the answer to bytes as they are."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(text)
        return client.recv(65_536).partition(b"\r\n")[0].decode()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LocalHost:{port}", 200),
        ("localhost:9000", 200),  # the other end of a tunnel
        ("localhost", 200),
        ("evil.example", 403),
        ("evil.example:{port}", 403),
        ("localhost.evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("me@localhost", 403),
        ("localhost:{port}:80", 403),
        ("localhost:", 403),
        ("localhost:\u00b2", 403),
        ("", 403),
    ],
)
def test_only_requests_for_this_machines_names_are_answered(port, host, status):
    assert asked(port, Host=host.format(port=port))[0] == status


def test_a_request_without_or_with_two_hosts_is_refused(port):
    assert sent(port, b"GET / HTTP/1.0\r\n\r\n").split()[1] == "403"
    assert sent(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").split()[1] == "403"


@pytest.mark.parametrize("length", ["\u00b2", "\u0663", "+3", "-3", "3,3", "0x3", "1_0", "9" * 30, ""])
def test_a_length_that_is_no_number_of_bytes_is_refused(port, length):
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\nabc"
    assert sent(port, head.encode()).split()[1] in ("400", "413")


def test_a_body_has_a_bound(port):
    assert asked(port, "POST", body=b"x" * loopback.LARGEST) == (200, "text/plain", b"x" * loopback.LARGEST)
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {loopback.LARGEST + 1}\r\n\r\n"
    assert sent(port, head.encode()).split()[1] == "413"  # before any of it came


def test_slow_clients_hold_no_thread(port):
    """More of them than threads, each in the middle of a request."""
    with contextlib.ExitStack() as opened:
        for part in (b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc") * 4:
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)).sendall(part)
        assert asked(port) == (200, "text/plain", b"here")


@pytest.mark.parametrize("part", [b"", b"GET / HTTP/1.1\r\nHo", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"])
def test_a_silent_client_is_let_go(part):
    with (
        running(loopback.server("test", plain, 0, threads=1, silent_s=0)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=30) as client,
    ):
        assert closed(client, part)


def closed(client, part):
    """Whether the other end closes the connection, without a word, after some bytes; unread ones make it a reset."""
    try:
        client.sendall(part)
        return client.recv(1) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True


def test_many_may_knock_at_once():
    """Before anybody answers."""
    with contextlib.ExitStack() as opened:
        made = loopback.server("test", plain, 0, threads=1)
        for _ in range(50):
            opened.enter_context(socket.create_connection(("127.0.0.1", made.effective_port), timeout=5))
        with running(made):
            assert asked(made.effective_port)[0] == 200


def test_a_client_that_leaves_is_noticed_and_leaves_no_trace(caplog):
    begun, noticed = threading.Event(), threading.Event()

    def waits(environ, start):
        begun.set()
        while not environ["waitress.client_disconnected"]():
            pass
        noticed.set()
        return loopback.answer(start, "200 OK", "text/plain", b"x" * 10**6)

    with caplog.at_level(logging.NOTSET), running(loopback.server("test", waits, 0, threads=1)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert begun.wait(30)
        assert noticed.wait(30)
    assert not caplog.records


def test_a_port_that_is_taken(port):
    with pytest.raises(InputError, match=f"test: cannot listen on 127.0.0.1:{port}: .*; choose another with --port"):
        loopback.server("test", plain, port, threads=1)
