"""Queues of the experiment trackers, each with a thread: a tracker that hangs or fails delays nobody."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

import structlog
from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from mor_core.printable import visible
from mor_core.runs import RunSpec, RunState
from mor_core.wire import EventRecord

from mor_trainer import metrics
from mor_trainer.config import ControlSettings
from mor_trainer.trackers.figures import figures
from mor_trainer.trackers.mlflow import MLflow
from mor_trainer.trackers.tensorboard import TensorBoard
from mor_trainer.trackers.tracker import Tracker

_REASON_CHARACTERS = 500
"""Libraries raise whole HTML pages; an alert needs the beginning."""

log = structlog.get_logger(__name__)

GROUP = "mor_trainer.trackers"
"""Entry points of trackers: functions from ``ControlSettings`` to a ``Tracker``."""
Warn = Callable[[str, str], None]
"""Function that raises an alert of a run, with a reason."""


def configured(settings: ControlSettings) -> list[Tracker]:
    """Create the trackers that the settings name, of MoR or of any package with an entry point in ``GROUP``.

    Raises:
        Invalid: one is unknown, or its library is not installed.
    """
    found: list[Tracker] = []
    if settings.tensorboard_dir is not None:
        found.append(TensorBoard(settings.tensorboard_dir))
    if settings.mlflow_tracking_uri is not None:
        found.append(MLflow(settings.mlflow_tracking_uri, settings.mlflow_experiment))
    return found + [_entry_point(name)(settings) for name in settings.trackers]


def _entry_point(name: str) -> Callable[[ControlSettings], Tracker]:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        hints = {"tensorboard": "set MOR_TENSORBOARD_DIR", "mlflow": "set MOR_MLFLOW_TRACKING_URI"}
        cure = hints.get(name, f"install a package that has it in its entry points {GROUP!r}, or correct the name")
        listed = ", ".join(sorted(known)) or "none"
        raise Invalid(f"MOR_TRACKERS names {visible(name)[:80]!r}, and the installed ones are {listed}; {cure}")
    try:
        create: Callable[[ControlSettings], Tracker] = known[name].load()
    except Exception as error:  # the code of a package of others
        raise Invalid(
            f"tracker {name!r} cannot be loaded: {quote_failure(error)}; correct or remove its package"
        ) from error
    return create


@dataclass(frozen=True)
class _Item:
    """Entry of a queue: an event, or the end of a run."""

    run: str
    spec: RunSpec
    event: EventRecord | None
    state: RunState | None = None


class Trackers:
    """All configured trackers.

    ``add_event`` and ``add_end`` return at once. ``queue`` bounds the entries that wait for each tracker: the oldest
    are dropped. ``warn`` is called on the trackers' threads.
    """

    def __init__(self, trackers: Sequence[Tracker], warn: Warn, queue: int) -> None:
        self._queues = [_Queue(tracker, warn, queue) for tracker in trackers]

    def add_event(self, event: EventRecord, spec: RunSpec) -> None:
        """Queue an event that is new to the history."""
        begins = event.kind == "state" and "from_step" in event.data
        if begins or event.kind in ("step", "evaluation"):
            self._add(_Item(event.run, spec, event))

    def add_end(self, run: str, spec: RunSpec, state: RunState) -> None:
        """Queue the end of a run."""
        self._add(_Item(run, spec, None, state))

    def _add(self, item: _Item) -> None:
        for waiting in self._queues:
            waiting.add(item)

    def close(self, timeout_s: float) -> None:
        """Pass on the waiting entries, within the time."""
        deadline = time.monotonic() + timeout_s
        for waiting in self._queues:
            waiting.close(deadline - time.monotonic())


class _Queue:
    """Entries of one tracker in their order, and the thread that passes them on."""

    def __init__(self, tracker: Tracker, warn: Warn, queue: int) -> None:
        self._tracker = tracker
        self._warn = warn
        self._waiting: deque[_Item] = deque()
        self._bound = queue
        self._changed = threading.Condition()
        self._closing = False
        self._begun: set[str] = set()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def add(self, item: _Item) -> None:
        with self._changed:
            if len(self._waiting) == self._bound:
                lost = self._waiting.popleft()
                metrics.TRACKER_LOST.labels(self._tracker.name).inc()
                if not self._failing:  # it hangs: report that once
                    self._fail(lost.run, f"{self._bound} figures wait for it already (MOR_TRACKER_QUEUE)")
            self._waiting.append(item)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(max(0.0, timeout_s))

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._pass_on(item)
            except Exception as error:  # a library may raise anything
                metrics.TRACKER_LOST.labels(self._tracker.name).inc()
                self._begun.discard(item.run)
                if not self._failing:
                    self._fail(item.run, quote_failure(error)[:_REASON_CHARACTERS])
            else:
                if self._failing and item.event is not None:  # an end of a run proves nothing: it may send nothing
                    log.info("a tracker works again", tracker=self._tracker.name)
                    self._failing = False

    def _next(self) -> _Item | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting.popleft() if self._waiting else None

    def _pass_on(self, item: _Item) -> None:
        if item.run not in self._begun:
            self._tracker.begin(item.run, item.spec)
            self._begun.add(item.run)
        if item.event is None:
            assert item.state is not None
            self._begun.remove(item.run)
            self._tracker.end(item.run, item.state)
        elif item.event.kind == "state":
            self._tracker.rewind(item.run, item.event.data["from_step"])
        else:
            self._tracker.log(item.run, item.event.step, item.event.stamps["trainer"], figures(item.event))

    def _fail(self, run: str, reason: str) -> None:
        """Report a failure, once until the tracker works again."""
        self._failing = True
        log.warning("a tracker fails; the run continues", tracker=self._tracker.name, run=run, reason=reason)
        self._warn(run, f"{self._tracker.name}: {reason}; the run continues, and figures may be missing there")
