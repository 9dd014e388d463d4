"""Settings of the command and the SDK, from options, environment, configuration file, defaults, in this order."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.failures import describe, quote_failure
from mor_core.proxies import ProxyAddress
from mor_core.settings import PREFIX, Settings
from mor_core.token_file import is_token
from platformdirs import user_config_path
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

CONFIG_VARIABLE = f"{PREFIX}CONFIG"
NOT_UTF_8 = "not UTF-8; save it as UTF-8, as by: iconv -f LATIN1 -t UTF-8 OLD > NEW"
"""Problem of a file that a person wrote in another encoding, and its cure."""


def config_path() -> Path:
    """Return the configuration file: ``MOR_CONFIG``, or ``mor/config.toml`` in the user's XDG configuration folder."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named).expanduser() if named else user_config_path("mor") / "config.toml"


class ClientSettings(Settings):
    """Settings of the command ``mor`` and the SDK. The file has the same names in lower case, without the prefix."""

    model_config = SettingsConfigDict(extra="forbid")

    control_url: str = "http://127.0.0.1:8300"
    """Address of run control (``mor-trainer serve``)."""
    router_url: str | None = None
    """Address of the router; needed for clients and objectives."""
    rollout_url: str | None = None
    """Address of the rollout service; used by ``mor doctor``."""
    token_file: Path | None = None
    """File with the bearer token. In the configuration file, a relative path starts at that file's folder."""
    token: SecretStr = SecretStr("")
    """Bearer token, if ``token_file`` is not set. Do not put it on command lines, which other users can read."""
    ca_file: Path | None = None
    """PEM file of certificate authorities for HTTPS; by default the system's."""
    proxy: ProxyAddress | None = None
    """Proxy for calls to the services, ``http://`` or ``https://``; proxy variables of the environment do not apply."""
    timeout_s: float = Field(30.0, gt=0)
    """Seconds to wait for a response."""
    fit_timeout_s: float = Field(900.0, gt=0)
    """Seconds to wait for the fit of an objective; every client scores the anchors first."""
    reward_timeout_s: float = Field(120.0, gt=0)
    """Seconds to wait for the rewards of one request."""
    reward_groups: int = Field(16, ge=1, le=256)
    """Most groups in one request for rewards; more are divided into several."""
    reward_bytes: int = Field(32 << 20, ge=1 << 16)
    """Most bytes of such a request, with its pictures; at most ``MOR_MAX_REQUEST_BYTES`` of the router."""
    reward_requests: int = Field(4, ge=1, le=64)
    """Most such requests at a time."""
    attempts: int = Field(4, ge=1, le=20)
    """Maximum attempts of a repeatable call."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = _ConfigFile(settings_cls, config_path())
        return named["init_settings"], named["env_settings"], file

    def bearer(self) -> str | None:
        """Return the token, or ``None`` if none is configured.

        Raises:
            Invalid: the token file cannot be read, or does not hold one token.
        """
        if self.token_file is None:
            return self.token.get_secret_value() or None
        try:
            token = self.token_file.expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise Invalid(f"token file {self.token_file}: {error.strerror}; name a readable file") from error
        except UnicodeDecodeError:
            token = ""  # bytes of something else
        if not is_token(token):
            raise Invalid(
                f"token file {self.token_file}: does not hold one token; write one token and nothing else to it"
            )
        return token

    def exposed_token_file(self) -> bool:
        """Return whether users other than its owner may read the token file."""
        if self.token_file is None or not self.token_file.expanduser().exists():
            return False
        return bool(self.token_file.expanduser().stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


class _ConfigFile(TomlConfigSettingsSource):
    """Source of settings from the TOML file; its paths are relative to its folder."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path) -> None:
        self._folder = path.absolute().parent
        super().__init__(settings_cls, path)

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        for name in ("token_file", "ca_file"):
            if isinstance(found.get(name), str):
                found[name] = self._folder / Path(found[name]).expanduser()
        return found


def read_settings(**given: Any) -> ClientSettings:
    """Read the settings; ``given`` values take precedence, unless they are ``None``.

    Raises:
        Invalid: names the invalid setting or configuration file.
    """
    if CONFIG_VARIABLE in os.environ and not config_path().is_file():
        raise Invalid(f"{CONFIG_VARIABLE}: no file {config_path()}; create it, or unset the variable")
    try:
        return ClientSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise Invalid(f"settings ({PREFIX}* or {config_path()}): {describe(error)}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{config_path()}: {NOT_UTF_8}") from error
    except ValueError as error:  # TOML that cannot be parsed
        raise Invalid(f"{config_path()}: {quote_failure(error)}; write it as TOML") from error
