"""Model that a waiting worker holds ready for the run of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog
from mor_core.errors import Invalid

from mor_trainer.model import loading

log = structlog.get_logger(__name__)


class StandbyModel:
    """At most one loaded checkpoint."""

    def __init__(self) -> None:
        self.checkpoint: str | None = None
        """The checkpoint that was prepared last, whether or not it could be loaded."""
        self._loaded: tuple[Any, Any] | None = None
        self._state: list[tuple[str, int, int]] = []

    def prepare(self, checkpoint: str) -> None:
        """Load a checkpoint in place of the one before. A failure is logged: it is the run's, once it is claimed."""
        self.checkpoint, self._loaded = checkpoint, None
        try:
            import peft  # noqa: F401  # takes a second, and runs with adapters need it

            self._state = _state_of(checkpoint)
            self._loaded = loading.load(checkpoint)
        except Invalid as error:
            log.warning("the model of a run under way cannot be held ready", model=checkpoint, reason=str(error))
        else:
            log.info("the model of a run under way is held ready", model=checkpoint)

    def take(self, checkpoint: str) -> tuple[Any, Any]:
        """Return model and processor, which are held no longer; load them where they are not held, or have changed.

        Raises:
            Invalid: they cannot be loaded.
        """
        held = self.checkpoint == checkpoint and self._state == _state_of(checkpoint)
        loaded, self.checkpoint, self._loaded = self._loaded, None, None
        return loaded if held and loaded is not None else loading.load(checkpoint)


def _state_of(checkpoint: str) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of the files of a local checkpoint; none for a hub name."""
    folder = Path(checkpoint)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
