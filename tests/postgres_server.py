"""A private PostgreSQL cluster on loopback, in a temporary folder, for tests and benchmarks."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path


def binaries():
    """The folder of Debian's server binaries, or of those on the PATH; None if there is no server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if Path("/usr/lib/postgresql").exists() else []
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


class Cluster:
    """Started on entry, stopped and deleted on exit; `restart` and `stop` do what they say to clients in the middle."""

    def __enter__(self):
        # not in a command's own folder for temporary files, which a test may have set: its user could not enter it
        self.folder = Path(tempfile.mkdtemp(prefix="nas-postgres-", dir="/tmp"))
        self.user = self._user()
        if self.user:
            shutil.chown(self.folder, self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "--auth=trust", "--no-sync", "--username=nas", "--encoding=UTF8", f"--pgdata={self.data}")
        self.start()
        return self

    def __exit__(self, *_):
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "stop", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def data(self):
        return str(self.folder / "data")

    @property
    def url(self):
        return f"postgresql://nas@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self):
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def _user(self):
        """The server refuses root: someone else then, if this process may choose."""
        if os.geteuid() != 0:
            return None
        names = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in names else "nobody"

    def _run(self, program, *arguments, check=True):
        as_user = ["runuser", "-u", self.user, "--"] if self.user else []
        done = subprocess.run(
            [*as_user, str(binaries() / program), *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert not check or done.returncode == 0, (program, done.stdout)
