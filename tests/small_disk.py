"""A small file system of one process's own, for what happens when a disk is full or read-only."""

import ctypes
import os
import subprocess
from pathlib import Path

NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000  # <sched.h>


class Unavailable(Exception):
    """This process may not mount anything, even in a namespace of its own."""


def mount(path, kib):
    """Mount a tmpfs that only this process and its children see; it goes with them. Call it in a child process."""
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None).unshare(NEW_MOUNTS | (NEW_USERS if user else 0)):
        raise Unavailable
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path))


def change(path, options):
    """New options, size=... and ro or rw, for the file system that `mount` made."""
    _mount("-o", f"remount,{options}", str(path))


def _mount(*arguments):
    if subprocess.run(["mount", *arguments], capture_output=True).returncode:
        raise Unavailable
