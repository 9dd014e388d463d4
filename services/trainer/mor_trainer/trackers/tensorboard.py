"""TensorBoard tracker: event files, a folder for each run."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.runs import RunSpec, RunState


class TensorBoard:
    """Tracker that writes TensorBoard's event files."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            Invalid: the library is not installed.
        """
        if importlib.util.find_spec("tensorboard") is None:
            raise Invalid(
                "MOR_TENSORBOARD_DIR is set without tensorboard; install mor-trainer[tensorboard], or unset it"
            )
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def begin(self, run: str, spec: RunSpec) -> None:
        """Do nothing: the first figure creates the file."""

    def log(self, run: str, step: int, at: float, figures: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write(run, Event(step=step, wall_time=at, summary=Summary(value=values)))

    def rewind(self, run: str, step: int) -> None:
        """Start a session, which makes readers leave out the later steps of earlier files."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._write(run, Event(step=step + 1, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))

    def end(self, run: str, state: RunState) -> None:
        writer = self._writers.pop(run, None)
        if writer is not None:
            writer.close()

    def _write(self, run: str, event: Any) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if run not in self._writers:
            self._writers[run] = EventFileWriter(str(self._folder / run))
        try:
            self._writers[run].add_event(event)
            self._writers[run].flush()
        except Exception:
            del self._writers[run]  # its thread is dead; the next figure gets a new file
            raise
