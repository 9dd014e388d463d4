"""docs/settings.md, generated from the settings classes."""

from __future__ import annotations

import inspect
from typing import Any

from mor_client.config import ClientSettings
from mor_core.settings import PREFIX, Settings
from mor_reward.config import RewardSettings
from mor_rollout.config import RolloutSettings
from mor_router.config import RouterSettings
from mor_trainer.config import ControlSettings, WorkerSettings
from pydantic import SecretStr
from pydantic.fields import FieldInfo

PROCESSES: dict[str, type[Settings]] = {
    "mor-reward serve": RewardSettings,
    "mor-router serve": RouterSettings,
    "mor-rollout serve": RolloutSettings,
    "mor-trainer serve": ControlSettings,
    "mor-trainer work": WorkerSettings,
    "mor": ClientSettings,
}
_HEAD = f"""# Settings

Every setting is an environment variable with the prefix `{PREFIX}`. `python docs/generate.py` writes this page from the
classes in each service's `config.py`; a test fails when it is out of date. OpenTelemetry's own variables configure
traces ([observability](observability.md#traces)).
"""


def page() -> str:
    """Return the whole page as Markdown."""
    return _HEAD + "".join(_section(command, settings) for command, settings in PROCESSES.items())


def _section(command: str, settings: type[Settings]) -> str:
    rows = "".join(_row(name, field) for name, field in settings.model_fields.items())
    return f"\n## `{command}`\n\n| variable | default | meaning |\n|---|---|---|\n{rows}"


def _row(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise SystemExit(f"setting {name} has no docstring")
    meaning = " ".join(inspect.cleandoc(field.description).split()).replace("``", "`").replace("|", "\\|")
    return f"| `{PREFIX}{name.upper()}` | {_default(field)} | {meaning} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return f"`{value}`" if str(value) and value is not None else "none"
