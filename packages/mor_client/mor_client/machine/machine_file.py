"""Typed file of ``mor up``: the services of one machine, their ports and settings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

from mor_core.errors import Invalid
from mor_core.failures import describe, quote_failure
from mor_core.field_names import nearest
from mor_core.known_variables import KNOWN
from mor_core.settings import PREFIX
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from mor_client.config import NOT_UTF_8

_OWN = {
    "config": "the operator's command reads it, no service",
    "control_url": "mor up sets it from control.port",
    "host": "all services listen on loopback; put a reverse proxy in front of what others may reach",
    "metrics_host": "all services listen on loopback; put a reverse proxy in front of what others may reach",
    "model": "give model at the top of the file, or in the client's section",
    "model_dir": "give model in the client's section",
    "function": "give function in the client's section",
    "port": "give port in the service's section",
    "redis_url": "give redis_url at the top of the file",
    "router_state_dir": "it is in the folder",
    "router_url": "mor up sets it from router.port",
    "runs_dir": "it is in the folder",
    "secret_key": "mor up keeps it in the folder",
    "secrets_dir": "mor up keeps it in the folder",
    "service_token": "mor up keeps it in the folder",
    "tls_cert_file": "all services listen on loopback; put a reverse proxy with TLS in front of what others may reach",
    "tls_key_file": "all services listen on loopback; put a reverse proxy with TLS in front of what others may reach",
    "tokens_file": "mor up keeps it in the folder",
    "weights_dir": "it is in the folder",
}
"""Settings that ``mor up`` makes itself, and why the file cannot have them."""

Value = str | int | float | bool | list[Any] | dict[str, Any]
Port = Annotated[int, Field(ge=1, le=65535)]
ProgramName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)


class _Configured(_Part):
    """Part of the file with settings of its own."""

    settings: dict[str, Value] = Field(default_factory=dict)
    """Settings of this process alone, by their names in lower case without ``MOR_``."""

    @field_validator("settings")
    @classmethod
    def _are_known(cls, settings: dict[str, Value]) -> dict[str, Value]:
        for name in settings:
            variable = f"{PREFIX}{name.upper()}"
            if name in _OWN:
                raise ValueError(f"setting {name!r} does not belong here: {_OWN[name]}")
            if name.lower().removeprefix("mor_") != name:
                raise ValueError(f"setting {name!r}: write it in lower case and without MOR_")
            if variable not in KNOWN:
                raise ValueError(f"no process reads the setting {name!r}; {_cure(variable)}")
        return settings

    def variables(self) -> dict[str, str]:
        """Return the settings as variables of the environment."""
        return {f"{PREFIX}{name.upper()}": _as_variable(value) for name, value in self.settings.items()}


class LocalQueue(_Part):
    """The bundled Valkey server."""

    port: Port = 8379


class LocalRouter(_Configured):
    """The router."""

    port: Port = 8100


class LocalRollout(_Configured):
    """The rollout service."""

    port: Port = 8200


class LocalControl(_Configured):
    """Run control, with the dashboard."""

    port: Port = 8300


class LocalWorker(_Configured):
    """The training processes."""

    number: int = Field(1, ge=0, le=64)
    """Processes; each trains one run at a time."""


class LocalClient(_Configured):
    """A client's reward service on this machine."""

    port: Port
    model: Path | None = None
    """Folder that ``mor-reward train`` wrote; give this or ``function``."""
    function: str | None = None
    """Python function, as ``file.py:name``."""

    @model_validator(mode="after")
    def _one_model(self) -> LocalClient:
        if (self.model is None) == (self.function is None):
            raise ValueError("give exactly one of model and function")
        return self


class LogFiles(_Part):
    """Logs of the processes, one file each."""

    bytes: int = Field(50 << 20, ge=1 << 16)
    """Size at which a log is renamed to ``NAME.log.1`` and a new one begins."""
    kept: int = Field(5, ge=1, le=1000)
    """Renamed logs that are kept of each process."""


class MachineFile(_Configured):
    """File of ``mor up``. Relative paths begin at its folder. ``settings`` at the top are those of all services."""

    model: str
    """Base checkpoint that runs align: folder or hub name."""
    folder: Path = Path("state")
    """Folder for all that the services keep: queue, runs, router's state, tokens, logs. Only its owner can read it."""
    redis_url: str | None = None
    """Address of a queue server of your own, instead of the bundled Valkey."""
    queue: LocalQueue = LocalQueue()
    router: LocalRouter = LocalRouter()
    rollout: LocalRollout = LocalRollout()
    control: LocalControl = LocalControl()
    worker: LocalWorker = LocalWorker()
    clients: dict[ProgramName, LocalClient] = Field(default_factory=dict)
    """Reward services that run on this machine, by the client's name."""
    logs: LogFiles = LogFiles()
    stop_s: float = Field(180.0, gt=0)
    """Seconds that the training processes have for their step and checkpoint when all services end."""

    @model_validator(mode="after")
    def _fit_together(self) -> MachineFile:
        taken: dict[int, str] = {}
        for name, port in self.ports().items():
            if taken.setdefault(port, name) != name:
                raise ValueError(f"{taken[port]} and {name} have the port {port}; give each its own")
        reserved = {"queue", "router", "rollout", "control", "worker"} & set(self.clients)
        if reserved:
            raise ValueError(f"a client cannot be named {min(reserved)!r}, as a service is; choose another name")
        return self

    def ports(self) -> dict[str, int]:
        """Return the port of each process that listens."""
        own = {} if self.redis_url else {"queue": self.queue.port}
        services = {"router": self.router.port, "rollout": self.rollout.port, "control": self.control.port}
        return own | services | {name: client.port for name, client in self.clients.items()}


def read_machine_file(path: Path) -> MachineFile:
    """Read the file; its paths become absolute.

    Raises:
        Invalid: the file cannot be read, or names what is wrong with it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}; name the file of this machine's services") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path}: {NOT_UTF_8}") from error
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{path}: {quote_failure(error)}; write it as TOML") from error
    try:
        found = MachineFile.model_validate(values)
    except ValidationError as error:
        problem = describe(error).replace("body: ", "")
        raise Invalid(f"{path}: {problem}") from None
    return _absolute(found, path.absolute().parent)


def _absolute(found: MachineFile, base: Path) -> MachineFile:
    """Return the file with paths that do not depend on the present folder."""
    clients = {
        name: client.model_copy(
            update={
                "model": None if client.model is None else base / client.model.expanduser(),
                "function": None if client.function is None else _function(client.function, base),
            }
        )
        for name, client in found.clients.items()
    }
    model = base / Path(found.model).expanduser()
    return found.model_copy(
        update={
            "folder": base / found.folder.expanduser(),
            "model": str(model) if model.is_dir() else found.model,
            "clients": clients,
        }
    )


def _function(named: str, base: Path) -> str:
    file, colon, name = named.rpartition(":")
    return f"{base / Path(file).expanduser()}{colon}{name}"


def _cure(variable: str) -> str:
    similar = nearest(variable, KNOWN, 0.8)
    return f"did you mean {similar.removeprefix(PREFIX).lower()!r}?" if similar else "docs/settings.md lists them"


def _as_variable(value: Value) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)
