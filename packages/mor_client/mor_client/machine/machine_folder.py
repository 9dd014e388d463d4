"""Folder of ``mor up``: secrets and tokens that are made once, and the files for the operator."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.fernet import Fernet
from mor_core import atomic
from mor_core.errors import Conflict, Invalid
from mor_core.issued_tokens import issue, listed
from mor_core.token_file import Token, hash_token
from mor_core.visibility import Scope

_REDIRECT = """<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<title>MoR dashboard</title>
<script>location.replace("{address}")</script>
"""
"""Page that leads a browser to the dashboard: a link with the token would stay in logs and in the list of processes."""


def dashboard_page(control_url: str, token: str) -> str:
    """Return a page that opens the dashboard with a token. Browsers do not send what follows ``#``."""
    return _REDIRECT.format(address=f"{control_url}/#token={token}")


class MachineFolder:
    """Files below the folder; only their owner can read them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secrets = path / "secrets"
        """Folder for ``MOR_SECRETS_DIR``."""
        self.tokens = path / "tokens.json"
        self.queue_password = self.secrets / "queue.password"
        self.command_settings = path / "mor.toml"
        """Configuration file of the command ``mor``."""
        self.dashboard = path / "dashboard.html"
        self.logs = path / "logs"

    def client(self, name: str) -> Path:
        """Return the folder of a reward service on this machine."""
        return self.path / "clients" / name

    def router_secret(self, name: str) -> Path:
        """Return the file with the token that the router sends to a reward service, for its enrolment."""
        return self.client(name) / "router.secret"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder: it belongs to one ``mor up`` at a time.

        Raises:
            Conflict: another one holds it.
            Invalid: the folder cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Invalid(f"{self.path}: {error.strerror}; name another folder, or change its owner") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(f"another mor up runs on {self.path}; end it first") from error
            yield
        finally:
            os.close(lock)

    def fill(self, urls: dict[str, str], redis_url: str | None, queue_port: int, clients: list[str]) -> None:
        """Make the secrets and tokens that are missing, and write the operator's files.

        ``urls``: addresses of ``control``, ``router`` and ``rollout``.

        Raises:
            Invalid: a file of the folder cannot be used.
        """
        for path in (self.secrets, self.logs, self.path / "queue", self.path / "runs", self.path / "router"):
            path.mkdir(mode=0o700, exist_ok=True)
        self._once(self.secrets / "mor_secret_key", Fernet.generate_key().decode())
        password = self._once(self.queue_password, secrets.token_hex(32))
        address = redis_url or f"redis://:{password}@127.0.0.1:{queue_port}/0"
        self._write(self.secrets / "mor_redis_url", address)
        self._token("operator", Scope.admin, self.path / "operator.token")
        viewer = self._token("dashboard", Scope.viewer, self.path / "viewer.token")
        self._token("prometheus", Scope.metrics, self.path / "metrics.token")
        self._token("mor", Scope.service, self.secrets / "mor_service_token")
        for name in clients:
            self._token("router", Scope.service, self.router_secret(name), self.client(name) / "tokens.json")
        lines = [f'{name}_url = "{url}"' for name, url in urls.items()] + ['token_file = "operator.token"']
        self._write(self.command_settings, "\n".join(lines) + "\n")
        self._write(self.dashboard, dashboard_page(urls["control"], viewer))

    def _token(self, name: str, scope: Scope, file: Path, tokens: Path | None = None) -> str:
        """Return the token in ``file``, which is made with its entry in the tokens file where it is missing."""
        tokens = tokens or self.tokens
        known: dict[str, Token] = {token.name: token for token in listed(tokens)} if tokens.exists() else {}
        secret = file.read_text().strip() if file.exists() else ""
        if name not in known:
            if secret:
                raise Invalid(
                    f"{tokens} has no token named {name!r} although {file} has it, so it was revoked; delete {file}, "
                    "and mor up makes another one"
                )
            secret = issue(tokens, name, scope)
            self._write(file, secret)
        elif hash_token(secret) != known[name].sha256:
            raise Invalid(
                f"{file} does not hold the token named {name!r} of {tokens}; delete both, and mor up makes a new one: "
                f"mor token revoke {name} --tokens-file {tokens}; rm -f {file}"
            )
        return secret

    def _once(self, file: Path, content: str) -> str:
        """Return the content of a file, which is written where it is missing."""
        if not file.exists():
            self._write(file, content)
        return file.read_text().strip()

    @staticmethod
    def _write(file: Path, content: str) -> None:
        atomic.write(file, content.encode(), mode=0o600)
