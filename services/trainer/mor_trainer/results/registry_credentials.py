"""Credentials of a registry, from the file that ``docker login`` and ``oras login`` write."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.hidden_secrets import remember
from mor_core.plain_files import read_plain_file
from pydantic import BaseModel, SecretStr, ValidationError

_LARGEST_FILE = 1 << 20


class _Login(BaseModel, hide_input_in_errors=True):
    auth: SecretStr = SecretStr("")
    """User and password, joined by a colon, in base64."""
    username: str = ""
    password: SecretStr = SecretStr("")


class _Logins(BaseModel, hide_input_in_errors=True):
    auths: dict[str, _Login] = {}


def read_credentials(host: str) -> tuple[str, str] | None:
    """Return user and password for a registry; ``None`` where there are none.

    The file is ``REGISTRY_AUTH_FILE``, or ``config.json`` in ``DOCKER_CONFIG`` or ``~/.docker``.

    Raises:
        Invalid: the file cannot be used.
    """
    file = _login_file()
    try:
        logins = _Logins.model_validate_json(read_plain_file(file.resolve(), _LARGEST_FILE), extra="ignore")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Invalid(f"{file}: {error.strerror}; make it readable, or name another by REGISTRY_AUTH_FILE") from error
    except ValidationError as error:
        raise Invalid(f"{file} is no file of logins ({describe(error)}); log in again") from error
    login = logins.auths.get(host) or logins.auths.get(f"https://{host}")
    if login is None:
        return None
    user, password = login.username, login.password.get_secret_value()
    if encoded := login.auth.get_secret_value():
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Invalid(f"{file}: the login for {host} is not base64; log in again") from error
        remember(encoded)
    remember(password)
    return (user, password) if user and password else None


def _login_file() -> Path:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"
