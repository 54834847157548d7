"""What worker processes compute in test_workers: apart, because a process imports the file its job is in."""

import os
import signal
import time

from nas import interruption

HELD = []


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hold(mib):
    HELD.append(bytearray(mib << 20))
    return len(HELD)


def until_told():
    while True:
        interruption.check()
        time.sleep(0.01)


def save_when_told(path):
    path.with_suffix(".begun").touch()
    try:
        until_told()
    except interruption.Interrupted:
        path.touch()
        raise


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def raise_unpicklable():
    raise Unpicklable(1, 2)
