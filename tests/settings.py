"""Settings of services for tests in several folders."""

from __future__ import annotations

from pathlib import Path

from cryptography.fernet import Fernet
from mor_router.config import RouterSettings
from pydantic import SecretStr


def router_settings(redis_url: str, tokens_file: Path, folder: Path) -> RouterSettings:
    """Return the settings of a router that calls clients on loopback and reads no stream."""
    return RouterSettings(
        redis_url=SecretStr(redis_url),
        tokens_file=tokens_file,
        secret_key=SecretStr(Fernet.generate_key().decode()),
        allow_loopback=True,
        audit_log=folder / "audit.jsonl",
        worker=False,
    )
