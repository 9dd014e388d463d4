"""Settings of every service: environment variables with the prefix ``MOR_``, typed, one docstring under each field.

The same classes drive the command lines, the environment and the Helm values. An unknown ``MOR_*`` variable of a
service's own group is ignored by pydantic-settings, so ``unknown_variables`` names them for the start-up log.

Secrets need not stand in the environment: with ``MOR_SECRETS_DIR`` a file ``mor_redis_url`` in that folder is the value
of ``MOR_REDIS_URL``, unless the variable is set as well.
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
    """What every HTTP service has."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` in a container."""
    port: int = Field(0, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """``json`` for machines, ``console`` for people, ``auto``: console on a terminal and JSON elsewhere."""
    tokens_file: Path | None = None
    """JSON file of inbound bearer tokens, see ``mor_core.auth``. Without, every call that needs a token is refused."""
    max_request_bytes: int = Field(64 << 20, gt=0)
    """Largest request body that is read, bytes; a larger one is answered 413."""
    shutdown_grace_s: float = Field(10.0, gt=0)
    """Seconds that requests in flight get to finish when the service is told to stop."""
    tls_cert_file: Path | None = None
    """PEM certificate, with its chain, to serve HTTPS with; plain HTTP without."""
    tls_key_file: Path | None = None
    """PEM private key of ``tls_cert_file``."""

    @model_validator(mode="after")
    def _certificate_and_key(self) -> ServiceSettings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("give both of MOR_TLS_CERT_FILE and MOR_TLS_KEY_FILE, or none of them")
        return self


class ControlCallerSettings(Settings):
    """What every process has that calls the trainer's run control."""

    service_token: SecretStr = SecretStr("")
    """Bearer token of scope ``service`` for run control and its weight files."""
    control_ca_file: Path | None = None
    """PEM file of certificate authorities for run control served by HTTPS; the system's where it is not set."""

    def control_tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.control_ca_file)


class StreamSettings(Settings):
    """Where the streams are and how they are bounded."""

    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """Address of Redis >= 7 or Valkey >= 8 (``redis://``, ``rediss://`` or ``unix://``), password included."""
    stream_bound: int = Field(256, ge=1)
    """Most unsettled entries in a stream; a producer waits while it is full."""
    lease_s: float = Field(30.0, gt=0)
    """Seconds after which an entry of a silent consumer is taken over by another; renewed while work goes on."""
    blob_dir: str | None = None
    """Shared folder or object store (an fsspec URL) for blobs over 256 KB; without one they too live in Redis."""


def unknown_variables(known: Iterable[type[Settings]]) -> list[str]:
    """Names of ``MOR_*`` variables in the environment that none of the settings classes reads: likely misspelt."""
    fields = {SECRETS_DIR} | {PREFIX + name.upper() for settings in known for name in settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in fields)
