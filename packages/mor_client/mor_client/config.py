"""Where the services are, and with which token: options, environment, configuration file, defaults, in this order."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.problems import describe
from mor_core.settings import PREFIX, Settings
from platformdirs import user_config_path
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

CONFIG_VARIABLE = f"{PREFIX}CONFIG"


def config_path() -> Path:
    """The configuration file: ``MOR_CONFIG``, or ``mor/config.toml`` in the user's configuration folder (XDG)."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named).expanduser() if named else user_config_path("mor") / "config.toml"


class ClientSettings(Settings):
    """The command ``mor`` and the SDK. The same names in lower case and without the prefix stand in the file."""

    model_config = SettingsConfigDict(extra="forbid")

    control_url: str = "http://127.0.0.1:8300"
    """Address of run control (``mor-trainer serve``)."""
    router_url: str | None = None
    """Address of the router; needed for clients and objectives."""
    rollout_url: str | None = None
    """Address of the rollout service; ``mor doctor`` looks at it."""
    token_file: Path | None = None
    """File with the bearer token; in the configuration file relative to that file's folder."""
    token: SecretStr = SecretStr("")
    """The bearer token itself, where no file is named. Leave it out of command lines, which others can read."""
    ca_file: Path | None = None
    """PEM file of certificate authorities for HTTPS; the system's where it is not set."""
    timeout_s: float = Field(30.0, gt=0)
    """Seconds that a service has to answer."""
    fit_timeout_s: float = Field(900.0, gt=0)
    """Seconds that the router has to fit an objective: every client scores the anchors first."""
    attempts: int = Field(4, ge=1, le=20)
    """Most attempts of a call that may be repeated."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = _ConfigFile(settings_cls, config_path())
        return named["init_settings"], named["env_settings"], file

    def bearer(self) -> str | None:
        """The token, if there is one.

        Raises:
            Invalid: the token file cannot be read, or holds something else.
        """
        if self.token_file is None:
            return self.token.get_secret_value() or None
        try:
            token = self.token_file.expanduser().read_text().strip()
        except OSError as error:
            raise Invalid(f"token file {self.token_file}: {error.strerror}; name one that you can read") from error
        if not token.isascii() or len(token.split()) != 1:
            raise Invalid(f"token file {self.token_file}: one token and nothing else is wanted in it")
        return token

    def exposed_token_file(self) -> bool:
        """Whether others than its owner may read the token file."""
        if self.token_file is None or not self.token_file.expanduser().exists():
            return False
        return bool(self.token_file.expanduser().stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


class _ConfigFile(TomlConfigSettingsSource):
    """The TOML file; paths in it are relative to its folder."""

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
    """Settings with ``given`` above all else; values that are ``None`` count as not given.

    Raises:
        Invalid: a setting or the configuration file is wrong; with its name.
    """
    if CONFIG_VARIABLE in os.environ and not config_path().is_file():
        raise Invalid(f"{CONFIG_VARIABLE}: no file {config_path()}; name one, or unset the variable")
    try:
        return ClientSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise Invalid(f"settings ({PREFIX}* or {config_path()}): {describe(error)}") from error
    except ValueError as error:  # TOML that cannot be parsed
        raise Invalid(f"{config_path()}: {error}; it must be TOML") from error
