"""Base classes of the services' settings: typed ``MOR_*`` variables with a docstring under each field.

The same classes drive command lines, environment and Helm values; ``mor_core.process`` reads them at the start.

Secrets may stay out of the environment: with ``MOR_SECRETS_DIR``, a file ``mor_redis_url`` in that folder holds the
value of ``MOR_REDIS_URL``, unless the variable is set as well.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict

from mor_core.certificates import client_context
from mor_core.object_stores import check_store
from mor_core.redis_address import parse_address
from mor_core.service_addresses import ServiceAddress

PREFIX = "MOR_"
SECRETS_DIR = f"{PREFIX}SECRETS_DIR"


def secret_file(setting: str) -> Path | None:
    """Return the file that a secret setting was read from; ``None`` where a variable holds it."""
    folder, name = os.environ.get(SECRETS_DIR), f"{PREFIX}{setting.upper()}"
    return Path(folder) / name.lower() if folder and name not in os.environ else None


class Settings(BaseSettings):
    """Base of a service's settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,
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


class LoggedSettings(Settings):
    """Settings of every process that writes a log."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity that is logged; libraries log warnings and errors only, as their debug lines hold prompts."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """``json`` for machines, ``console`` for people, ``auto``: console on a terminal and JSON elsewhere."""


class ServiceSettings(LoggedSettings):
    """Settings of every HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` in a container, ``::`` for IPv6 and IPv4."""
    port: int = Field(0, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """TCP port for ``/metrics`` alone, without a token; let only Prometheus reach it. Without it ``/metrics`` is on
    ``port`` and needs a token of scope ``metrics`` or ``viewer``. 0 takes a free one."""
    metrics_host: str | None = None
    """Address to listen on for ``metrics_port``; by default ``host``."""
    tokens_file: Path | None = None
    """JSON file of inbound bearer tokens, see ``mor_core.auth``. Without it, calls that need a token are refused."""
    max_request_bytes: int = Field(64 << 20, gt=0)
    """Largest request body, bytes; the service answers a larger one with 413. Routes that take neither pictures nor
    batches take at most 1 MiB."""
    max_body_memory_bytes: int = Field(256 << 20, gt=0)
    """Bytes of request bodies in memory at a time; more get 503 with Retry-After. One caller may use all of it while no
    other needs it."""
    max_requests: int = Field(512, ge=1)
    """Authenticated requests in progress, event streams included; further ones get 503 with Retry-After. One caller may
    use all of them while no other needs them."""
    max_connections: int = Field(1024, ge=2)
    """Open connections. At the limit, a new one replaces the connection that has waited longest without a request."""
    max_connections_per_address: int = Field(512, ge=1)
    """Open connections from one address, with the same effect. Behind an ingress all callers have the ingress's
    address; the limit of each caller is then the ingress's."""
    head_timeout_s: float = Field(10.0, gt=0)
    """Seconds in which a request line and its headers must arrive; the connection is then closed."""
    body_timeout_s: float = Field(120.0, gt=0)
    """Seconds in which a request's body must arrive; the service then answers 408."""
    idle_timeout_s: float = Field(20.0, gt=0)
    """Seconds that a connection stays open without a request."""
    write_timeout_s: float = Field(60.0, gt=0)
    """Seconds for which a caller may take nothing of a response; the connection is then closed."""
    shutdown_grace_s: float = Field(10.0, gt=0)
    """Seconds that requests in flight have to finish after SIGTERM."""
    tls_cert_file: Path | None = None
    """PEM certificate with its chain, for HTTPS; plain HTTP without it."""
    tls_key_file: Path | None = None
    """PEM private key of ``tls_cert_file``."""

    @model_validator(mode="after")
    def _fit_together(self) -> ServiceSettings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("give both of MOR_TLS_CERT_FILE and MOR_TLS_KEY_FILE, or none of them")
        if self.metrics_host is not None and self.metrics_port is None:
            raise ValueError("MOR_METRICS_HOST is set without MOR_METRICS_PORT; set that, or remove it")
        if self.max_request_bytes > self.max_body_memory_bytes:
            raise ValueError(
                f"MOR_MAX_REQUEST_BYTES={self.max_request_bytes} is over MOR_MAX_BODY_MEMORY_BYTES="
                f"{self.max_body_memory_bytes}, so that the largest requests would always be refused; raise the second"
            )
        return self


class ControlCallerSettings(Settings):
    """Settings of every process that calls the trainer's run control."""

    control_url: ServiceAddress = "http://127.0.0.1:8300"
    """Address of run control as seen from this process. The service token is sent there and nowhere else."""
    service_token: SecretStr = SecretStr("")
    """Bearer token with scope ``service`` for run control and its weight files."""
    control_ca_file: Path | None = None
    """PEM file of certificate authorities for run control over HTTPS; the system's by default."""

    def control_tls(self) -> ssl.SSLContext:
        return client_context("MOR_CONTROL_CA_FILE", self.control_ca_file)


class StreamSettings(Settings):
    """Settings of every process on the streams."""

    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """Address of Redis >= 7 or Valkey >= 8, password included: ``redis://user:password@host:6379/0``, or
    ``redis+sentinel://user:password@host:26379,host2:26379/NAME/0`` for the server that Sentinels call NAME, or
    ``redis+cluster://user:password@host:6379,host2:6379`` for a cluster. ``rediss`` uses TLS; ``?ssl_ca_certs=FILE``
    names its authorities, ``?sentinel_password=…`` the Sentinels' password."""
    stream_bound: int = Field(256, ge=1)
    """Most unsettled entries in a stream; a producer waits while it is full."""
    lease_s: float = Field(30.0, gt=0)
    """Seconds after which another consumer takes over an entry of a silent one; renewed during the work on it."""
    blob_dir: str | None = None
    """Shared folder or object store (an fsspec URL) for blobs over 256 KB; Redis keeps them too without it. ``s3://``,
    ``gs://`` and ``abfs://`` need the extra ``s3``, ``gcs`` or ``azure``, which the images have."""

    @field_validator("blob_dir")
    @classmethod
    def _can_be_used(cls, value: str | None) -> str | None:
        if value is not None:
            check_store(value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _has_known_form(cls, value: SecretStr) -> SecretStr:
        parse_address(value.get_secret_value())
        return value


class StageSettings(StreamSettings):
    """Settings of the stages that process groups: sampling and scoring."""

    attempt_timeout_s: float = Field(1800.0, gt=0)
    """Longest work on the groups of one read, seconds, waits for clients, weights and the next stream included. After
    it the groups stay in the stream and are delivered again."""
