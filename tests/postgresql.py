"""A real PostgreSQL server on loopback, of Debian's package ``postgresql``."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from tests.ports import free_port


def programs() -> Path | None:
    """Return the folder of the server's programs; ``None`` where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).resolve().parent


class PostgreSQL:
    """Server that a test may kill and start again on the same data. It refuses to run as root, so another user does."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._directory = Path(tempfile.mkdtemp(prefix="mor-postgresql-"))
        self._user = None if os.getuid() else _other_user()
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        self._data = self._directory / "data"
        self.port = free_port()
        initdb = [str(binaries / "initdb"), "--auth=trust", "--username=mor", "--no-sync", "--encoding=UTF8"]
        self._run([*initdb, "--locale=C", str(self._data)])
        self.start()

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, user=self._user, cwd=self._directory, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def address(self, database: str = "postgres") -> str:
        return f"postgresql://mor@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = ("listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=", "fsync=off")
        arguments = [part for option in options for part in ("-c", option)]
        self._process = subprocess.Popen(
            [str(self._binaries / "postgres"), "-D", str(self._data), *arguments],
            user=self._user,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.address()).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "postgres did not come up"
                time.sleep(0.05)

    def new_database(self, name: str) -> str:
        """Create an empty database and return its address."""
        with psycopg.connect(self.address(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.address(name)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once, as by a crash
        self._process.wait(timeout=20)

    def stop(self) -> None:
        if self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


def _other_user() -> str:
    """Return a user without rights: that of Debian's package, or the one for nobody."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
