"""Writes docs/settings.md from the settings classes, and the results in README.md, docs/algorithm.md,
docs/client-states.md and docs/training.md from ``bench/results``, so that pages, code and measurements agree:
``python docs/generate.py``.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from mor_client.config import ClientSettings
from mor_core.settings import PREFIX, Settings
from mor_reward.config import RewardSettings
from mor_rollout.config import RolloutSettings
from mor_router.config import RouterSettings
from mor_trainer.config import ControlSettings, WorkerSettings
from pydantic import SecretStr
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "bench"))

from tables import demonstration, experiment, quarantine, trainer  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
README = ROOT / "README.md"
TRAINING = ROOT / "docs" / "training.md"
ALGORITHM = ROOT / "docs" / "algorithm.md"
CLIENT_STATES = ROOT / "docs" / "client-states.md"
_RESULTS = ("<!-- results: written by docs/generate.py -->\n", "<!-- end of results -->\n")
PROCESSES: dict[str, type[Settings]] = {
    "mor-reward serve": RewardSettings,
    "mor-router serve": RouterSettings,
    "mor-rollout serve": RolloutSettings,
    "mor-trainer serve": ControlSettings,
    "mor-trainer work": WorkerSettings,
    "mor": ClientSettings,
}
_HEAD = f"""# Settings

Every setting is an environment variable with the prefix `{PREFIX}`. This page is made by `python docs/generate.py` from
the classes in each service's `config.py`; a test fails when it is out of date.
"""


def page() -> str:
    """The whole page as Markdown."""
    return _HEAD + "".join(_section(command, settings) for command, settings in PROCESSES.items())


def readme() -> str:
    """The README with the results that were measured last."""
    return _with_results(README, demonstration())


def algorithm() -> str:
    """The page on the algorithm, likewise."""
    return _with_results(ALGORITHM, experiment())


def training() -> str:
    """The page on how a step is computed, likewise."""
    return _with_results(TRAINING, trainer())


def client_states() -> str:
    """The page on what a router does with a client, likewise."""
    return _with_results(CLIENT_STATES, quarantine())


def _with_results(file: Path, results: str) -> str:
    begin, end = _RESULTS
    before, _, rest = file.read_text().partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{results}\n{end}{after}"


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


if __name__ == "__main__":
    PAGE.write_text(page())
    README.write_text(readme())
    ALGORITHM.write_text(algorithm())
    CLIENT_STATES.write_text(client_states())
    TRAINING.write_text(training())
