"""Who coordinates a run: one process at a time, on whatever machine. It says so in the storage every few seconds.

A beat is a count, and whoever watches uses a clock of his own, so clocks of machines need not agree.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Callable
from typing import Any

import optuna

from nas.disk import lock
from nas.errors import InputError

BEAT_S = 5.0
LEASE_S = 30.0  # whoever was not heard of for this long is taken for dead
KEY = "coordinator"


class Lease:
    """The right to coordinate one Optuna study."""

    def __init__(self, study: optuna.Study):
        self._study, self._owner, self._beat, self._next = study, uuid.uuid4().hex, 0, 0.0

    def take(self, say: Callable[[str], None], contested: bool) -> None:
        """Become the coordinator. Raises InputError while another process is one.

        `contested`: others may take it at this very moment, because no lock on a file keeps them out.
        """
        held = self._study.user_attrs.get(KEY)
        if held and not held["released"] and not died_here(held):
            say(f"waiting up to {LEASE_S:.0f} s for a sign of life of the process that ran this study ({_who(held)})")
            if beats(self._study, held):
                raise InputError(f"{self._study.study_name}: {_who(held)} is running this study")
        self._write()
        if contested:
            time.sleep(0.5)
            self._check()

    def renew(self) -> None:
        """Say that this process lives, when it is time. Raises InputError when another one has taken over."""
        if time.monotonic() >= self._next:
            self._check()
            self._write()

    def release(self) -> None:
        """Let another process coordinate at once."""
        if self._study.user_attrs.get(KEY, {}).get("owner") == self._owner:
            self._write(released=True)

    def _check(self) -> None:
        held = self._study.user_attrs[KEY]
        if held["owner"] != self._owner:
            raise InputError(f"{self._study.study_name}: {_who(held)} has taken this study over; this process stops")

    def _write(self, released: bool = False) -> None:
        self._beat += 1
        self._next = time.monotonic() + BEAT_S
        who = {"owner": self._owner, "host": platform.node(), "pid": os.getpid()}
        self._study.set_user_attr(KEY, {**who, "beat": self._beat, "released": released})


def died_here(held: dict[str, Any]) -> bool:
    """Whether a process of this machine is known to have ended."""
    return lock.ended(held["host"], held["pid"])


def beats(study: optuna.Study, held: dict[str, Any]) -> bool:
    """Whether a coordinator gives a sign of life within LEASE_S."""
    until = time.monotonic() + LEASE_S
    while time.monotonic() < until:
        now = study.user_attrs[KEY]
        if now["released"]:
            return False
        if (now["owner"], now["beat"]) != (held["owner"], held["beat"]):
            return True
        time.sleep(1.0)
    return False


def _who(held: dict[str, Any]) -> str:
    return f"process {held['pid']} on {held['host']}"
