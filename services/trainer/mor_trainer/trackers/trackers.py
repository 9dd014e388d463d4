"""Telling experiment trackers, each on a thread of its own: one that hangs or fails holds up nobody."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from mor_core.runs import RunSpec, RunState
from mor_core.wire import EventRecord

from mor_trainer import metrics
from mor_trainer.config import ControlSettings
from mor_trainer.trackers.figures import figures
from mor_trainer.trackers.mlflow import MLflow
from mor_trainer.trackers.tensorboard import TensorBoard
from mor_trainer.trackers.tracker import Tracker

_REASON_CHARACTERS = 500

log = structlog.get_logger(__name__)

Warn = Callable[[str, str], None]
"""Raises an alert of a run, with its reason."""


def configured(settings: ControlSettings) -> list[Tracker]:
    """The trackers that the settings name.

    Raises:
        Invalid: the library of one is not installed.
    """
    found: list[Tracker] = []
    if settings.tensorboard_dir is not None:
        found.append(TensorBoard(settings.tensorboard_dir))
    if settings.mlflow_tracking_uri is not None:
        found.append(MLflow(settings.mlflow_tracking_uri, settings.mlflow_experiment))
    return found


@dataclass(frozen=True)
class _News:
    """Something to tell: an event, or the end of a run."""

    run: str
    spec: RunSpec
    event: EventRecord | None
    state: RunState | None = None


class Trackers:
    """``tell`` and ``ended`` return at once. ``queue``: most news that wait for each tracker; the oldest give way.
    ``warn`` is called on the trackers' threads."""

    def __init__(self, trackers: Sequence[Tracker], warn: Warn, queue: int) -> None:
        self._lines = [_Line(tracker, warn, queue) for tracker in trackers]

    def tell(self, event: EventRecord, spec: RunSpec) -> None:
        """Pass on an event that is new to the history."""
        begins = event.kind == "state" and "from_step" in event.data
        if begins or event.kind in ("step", "evaluation"):
            self._add(_News(event.run, spec, event))

    def ended(self, run: str, spec: RunSpec, state: RunState) -> None:
        self._add(_News(run, spec, None, state))

    def _add(self, news: _News) -> None:
        for line in self._lines:
            line.add(news)

    def close(self, timeout_s: float) -> None:
        """Tell what waits, as far as the time reaches."""
        deadline = time.monotonic() + timeout_s
        for line in self._lines:
            line.close(deadline - time.monotonic())


class _Line:
    """The news of one tracker, in their order."""

    def __init__(self, tracker: Tracker, warn: Warn, queue: int) -> None:
        self._tracker = tracker
        self._warn = warn
        self._waiting: deque[_News] = deque()
        self._bound = queue
        self._changed = threading.Condition()
        self._closing = False
        self._begun: set[str] = set()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def add(self, news: _News) -> None:
        with self._changed:
            if len(self._waiting) == self._bound:
                lost = self._waiting.popleft()
                metrics.TRACKER_LOST.labels(self._tracker.name).inc()
                if not self._failing:  # it hangs
                    self._fail(lost.run, f"{self._bound} figures wait for it already (MOR_TRACKER_QUEUE)")
            self._waiting.append(news)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(max(0.0, timeout_s))

    def _run(self) -> None:
        while (news := self._next()) is not None:
            try:
                self._tell(news)
            except Exception as error:  # whatever a library raises
                metrics.TRACKER_LOST.labels(self._tracker.name).inc()
                self._begun.discard(news.run)
                if not self._failing:
                    self._fail(news.run, f"{type(error).__name__}: {str(error)[:_REASON_CHARACTERS]}")
            else:
                if self._failing and news.event is not None:  # the end of a run may take nothing
                    log.info("a tracker works again", tracker=self._tracker.name)
                    self._failing = False

    def _next(self) -> _News | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting.popleft() if self._waiting else None

    def _tell(self, news: _News) -> None:
        if news.run not in self._begun:
            self._tracker.begin(news.run, news.spec)
            self._begun.add(news.run)
        if news.event is None:
            assert news.state is not None
            self._begun.remove(news.run)
            self._tracker.end(news.run, news.state)
        elif news.event.kind == "state":
            self._tracker.rewind(news.run, news.event.data["from_step"])
        else:
            self._tracker.log(news.run, news.event.step, news.event.stamps["trainer"], figures(news.event))

    def _fail(self, run: str, reason: str) -> None:
        """Tell of a failure, once until the tracker works again."""
        self._failing = True
        log.warning("a tracker fails; the run goes on", tracker=self._tracker.name, run=run, reason=reason)
        self._warn(run, f"{self._tracker.name}: {reason}; the run goes on, and figures may be missing there")
