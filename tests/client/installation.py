"""Installation for tests: run control and router on real sockets, with a configuration file for ``mor``."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from click.testing import Result
from fastapi import FastAPI
from mor_client.cli import app
from mor_core.auth import hash_token
from mor_router.app import create_app as create_router
from mor_trainer.app import create_app as create_control
from mor_trainer.config import ControlSettings
from pydantic import SecretStr
from typer.testing import CliRunner

from tests.ports import free_port
from tests.settings import router_settings

REGISTRY_PORT = free_port()
"""Port of the registry to which run control may push."""
TOKENS = {scope: f"{scope}-token-of-the-installation" for scope in ("admin", "service", "scorer", "viewer", "labeller")}


@contextmanager
def served(service: FastAPI) -> Iterator[str]:
    """Serve an app on its own thread and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(service, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the service did not come up"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=20)


class Installation:
    """Run control and router on one queue server, and the command with their configuration."""

    def __init__(self, folder: Path, redis_url: str, control: str, router: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.control = control
        self.router = router
        self.config = folder / "mor.toml"
        self.use("admin")

    def use(self, scope: str) -> None:
        """Give the command a token of this scope."""
        secret = self.folder / f"{scope}.token"
        secret.touch(mode=0o600)
        secret.write_text(TOKENS[scope] + "\n")
        self.config.write_text(
            f'control_url = "{self.control}"\nrouter_url = "{self.router}"\n'
            f'token_file = "{secret.name}"\nattempts = 1\n'
        )

    def mor(self, *arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(
            app, list(arguments), env={"MOR_CONFIG": str(self.config), "COLUMNS": "200", **environment}
        )

    def ok(self, *arguments: str) -> str:
        """Run a command that must succeed and return its standard output."""
        result = self.mor(*arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))


@contextmanager
def installation(folder: Path, redis_url: str) -> Iterator[Installation]:
    """Send the services' logs to a file, because they share standard output with the command."""
    with (folder / "services.log").open("w") as log:
        before = structlog.get_config()["logger_factory"]
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(log))
        with _services(folder, redis_url) as running:
            yield running
        structlog.configure(logger_factory=before)


@contextmanager
def _services(folder: Path, redis_url: str) -> Iterator[Installation]:
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps([{"name": s, "scope": s, "sha256": hash_token(t)} for s, t in TOKENS.items()]))
    with served(create_router(router_settings(redis_url, tokens, folder))) as router:
        control_settings = ControlSettings(
            runs_dir=folder / "runs",
            tokens_file=tokens,
            redis_url=SecretStr(redis_url),
            router_url=router,
            service_token=SecretStr(TOKENS["service"]),
            sse_heartbeat_s=1.0,
            push_destinations=(f"oci://127.0.0.1:{REGISTRY_PORT}",),
        )
        with served(create_control(control_settings)) as control:
            yield Installation(folder, redis_url, control, router)
