"""A scheduler's SIGTERM: a worker that computes goes on to the next safe point, saves there, and leaves.

Whoever computes calls `check` where it could stop. An idle worker leaves at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """The work stops here; its checkpoint is on disk and it is to be taken up again."""


class Terminated(BaseException):
    """SIGTERM reached the coordinator. Like KeyboardInterrupt it is no Exception, so that nothing handles it by mistake."""


_asked = threading.Event()
_computing = threading.Event()
_signals = [signal.SIGTERM.value]  # the last is the one that asked


def asked() -> bool:
    """Whether this process was told to stop."""
    return _asked.is_set()


def exit_code() -> int:
    """128 + the number of the signal that told this process to end, SIGTERM where none did: what shells and schedulers expect."""
    return 128 + _signals[-1]


def check() -> None:
    """Raises Interrupted once this process was told to stop."""
    if asked():
        raise Interrupted("told to stop")


def install_in_worker() -> None:
    """From now on SIGTERM asks for a stop; Ctrl-C is left to the coordinator, which tells its workers."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def install_in_trainer() -> None:
    """From now on SIGTERM and Ctrl-C ask for a stop."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)


def ask() -> None:
    """As if this process had been told to stop."""
    _asked.set()


def install_in_coordinator() -> None:
    """From now on SIGTERM raises Terminated in the main thread."""
    signal.signal(signal.SIGTERM, _raise_terminated)


@contextmanager
def coordinating() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated in the main thread; what that ends gets the signal again, as it was handled before.

    Where no handler can be set, in another thread, the signal is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated) or signal.SIG_DFL
    try:
        yield
    except Terminated:
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def computing() -> Iterator[None]:
    """While this lasts, a signal waits for a safe point."""
    _computing.set()
    try:
        yield
    finally:
        _computing.clear()


def _on_signal(number: int, _: Any) -> None:
    _signals.append(number)
    _asked.set()
    if not _computing.is_set():
        os._exit(exit_code())


def _raise_terminated(*_: Any) -> None:
    raise Terminated
