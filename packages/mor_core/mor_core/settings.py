"""Base classes of the services' settings: typed ``MOR_*`` variables with a docstring under each field.

The same classes drive command lines, environment and Helm values. pydantic-settings ignores unknown variables, so
``unknown_variables`` names them for the start-up log.

Secrets may stay out of the environment: with ``MOR_SECRETS_DIR``, a file ``mor_redis_url`` in that folder holds the
value of ``MOR_REDIS_URL``, unless the variable is set as well.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict

PREFIX = "MOR_"
SECRETS_DIR = f"{PREFIX}SECRETS_DIR"


class Settings(BaseSettings):
    """Base of a service's settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", use_attribute_docstrings=True, validate_default=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        folder = os.environ.get(SECRETS_DIR)
        files = (SecretsSettingsSource(settings_cls, secrets_dir=folder),) if folder else ()
        return (init_settings, env_settings, *files)


class ServiceSettings(Settings):
    """Settings of every HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` in a container."""
    port: int = Field(0, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity that is logged."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """``json`` for machines, ``console`` for people, ``auto``: console on a terminal and JSON elsewhere."""
    tokens_file: Path | None = None
    """JSON file of inbound bearer tokens, see ``mor_core.auth``. Without it, calls that need a token are refused."""
    max_request_bytes: int = Field(64 << 20, gt=0)
    """Largest request body, bytes; the service answers a larger one with 413."""
    shutdown_grace_s: float = Field(10.0, gt=0)
    """Seconds that requests in flight have to finish after SIGTERM."""
    tls_cert_file: Path | None = None
    """PEM certificate with its chain, for HTTPS; plain HTTP without it."""
    tls_key_file: Path | None = None
    """PEM private key of ``tls_cert_file``."""

    @model_validator(mode="after")
    def _certificate_and_key(self) -> ServiceSettings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("give both of MOR_TLS_CERT_FILE and MOR_TLS_KEY_FILE, or none of them")
        return self


class ControlCallerSettings(Settings):
    """Settings of every process that calls the trainer's run control."""

    control_url: str = "http://127.0.0.1:8300"
    """Address of run control as seen from this process. The service token is sent there and nowhere else."""
    service_token: SecretStr = SecretStr("")
    """Bearer token with scope ``service`` for run control and its weight files."""
    control_ca_file: Path | None = None
    """PEM file of certificate authorities for run control over HTTPS; the system's by default."""

    def control_tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.control_ca_file)


class StreamSettings(Settings):
    """Settings of every process on the streams."""

    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """Address of Redis >= 7 or Valkey >= 8 (``redis://``, ``rediss://`` or ``unix://``), password included."""
    stream_bound: int = Field(256, ge=1)
    """Most unsettled entries in a stream; a producer waits while it is full."""
    lease_s: float = Field(30.0, gt=0)
    """Seconds after which another consumer takes over an entry of a silent one; renewed during the work on it."""
    blob_dir: str | None = None
    """Shared folder or object store (an fsspec URL) for blobs over 256 KB; Redis keeps them too without it."""


class StageSettings(StreamSettings):
    """Settings of the stages that process groups: sampling and scoring."""

    attempt_timeout_s: float = Field(1800.0, gt=0)
    """Longest work on the groups of one read, seconds, waits for clients, weights and the next stream included. After
    it the groups stay in the stream and are delivered again."""


def unknown_variables(known: Iterable[type[Settings]]) -> list[str]:
    """Return the ``MOR_*`` variables that no settings class reads, which are likely misspelt."""
    fields = {SECRETS_DIR} | {PREFIX + name.upper() for settings in known for name in settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in fields)
