"""Weights & Biases tracker: a run of one project for each run, with its settings as configuration.

The library reads project, entity, key, folder and mode from its own ``WANDB_*`` variables.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from mor_core.errors import Invalid
from mor_core.runs import RunSpec, RunState

from mor_trainer.config import ControlSettings

_PROJECT = "mor"
_STEP = "step"
"""Metric that orders the others: W&B's own step never falls, and a run that resumes goes back."""
_LOST = "mor.lost_after_step"
_LOGIN_S = 5.0
"""Seconds for which the library asks for a key at a terminal; without one it fails at once."""


class Wandb:
    """Tracker that writes to a server of Weights & Biases, or to files where ``WANDB_MODE`` is ``offline``."""

    name = "wandb"

    def __init__(self) -> None:
        """
        Raises:
            Invalid: the library is not installed.
        """
        if importlib.util.find_spec("wandb") is None:
            raise Invalid(
                "MOR_TRACKERS names wandb, which is not installed; install mor-trainer[wandb], or leave it out"
            )
        self._runs: dict[str, Any] = {}

    def begin(self, run: str, spec: RunSpec) -> None:
        """Continue W&B's run of the same id, or create it with the settings as configuration."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # runs are private
        import wandb

        self._runs[run] = found = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            id=run,
            name=run,
            config=spec.model_dump(mode="json", exclude_none=True),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                login_timeout=_LOGIN_S,
                x_disable_machine_info=True,
                x_disable_stats=True,
            ),
        )
        found.define_metric(_STEP)
        found.define_metric("*", step_metric=_STEP)

    def log(self, run: str, step: int, at: float, figures: Mapping[str, float]) -> None:
        """Store figures with their step; W&B stamps the time at which it gets them."""
        self._runs[run].log({**figures, _STEP: step})

    def rewind(self, run: str, step: int) -> None:
        """Note the step after which figures are lost: W&B deletes none, and draws the newer ones over them."""
        if step:
            self._runs[run].summary[_LOST] = step

    def end(self, run: str, state: RunState) -> None:
        self._runs.pop(run).finish(exit_code=0 if state is RunState.finished else 1)


def of_settings(settings: ControlSettings) -> Wandb:
    """Create the tracker; its own variables configure it."""
    return Wandb()
