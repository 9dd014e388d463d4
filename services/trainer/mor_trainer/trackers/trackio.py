"""Trackio tracker: a run of one project for each run, with its settings as configuration.

The library reads its own ``TRACKIO_*`` variables: ``TRACKIO_DIR`` for files, ``TRACKIO_SERVER_URL`` and
``TRACKIO_WRITE_TOKEN`` for a server, ``TRACKIO_SPACE_ID`` for a Space of a Hugging Face hub.
"""

from __future__ import annotations

import contextvars
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from mor_core.errors import Invalid
from mor_core.runs import RunSpec, RunState

from mor_trainer.config import ControlSettings

_PROJECT = "mor"
_LOST = "mor.lost_after_step"


class Trackio:
    """Tracker that writes to Trackio's files, its server, or a Space."""

    name = "trackio"

    def __init__(self) -> None:
        """
        Raises:
            Invalid: the library is not installed.
        """
        if importlib.util.find_spec("trackio") is None:
            raise Invalid(
                "MOR_TRACKERS names trackio, which is not installed; install mor-trainer[trackio], or leave it out"
            )
        self._runs: dict[str, Any] = {}

    def begin(self, run: str, spec: RunSpec) -> None:
        """Continue Trackio's run of the same name, or create it with the settings as configuration."""
        import trackio

        # In a context of its own: the library ends the run that its context has when the next one begins.
        self._runs[run] = contextvars.Context().run(
            trackio.init,
            project=os.environ.get("TRACKIO_PROJECT") or _PROJECT,
            name=run,
            config=spec.model_dump(mode="json", exclude_none=True),
            resume="allow",
            private=True,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, run: str, step: int, at: float, figures: Mapping[str, float]) -> None:
        """Queue figures of a step; Trackio stamps the time at which it gets them."""
        self._runs[run].log(dict(figures), step=step)

    def rewind(self, run: str, step: int) -> None:
        """Log the step after which figures are lost: Trackio deletes none."""
        if step:
            self._runs[run].log({_LOST: step}, step=step)

    def end(self, run: str, state: RunState) -> None:
        self._runs.pop(run).finish()


def of_settings(settings: ControlSettings) -> Trackio:
    """Create the tracker; its own variables configure it."""
    return Trackio()
