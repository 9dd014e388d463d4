"""Prometheus metrics of the runs, set from their events and streams; a run's series end with the run."""

from __future__ import annotations

from mor_core.runs import RunSpec, RunState
from mor_core.step_metrics import PROMETHEUS_PREFIX, ClientFigures, SourceFigures, StepMetrics, declared
from mor_core.streams import Backlog
from mor_core.wire import EventRecord
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"{PROMETHEUS_PREFIX}{name}", text, ("run", *labels))


def _gauges(model: type[BaseModel]) -> dict[str, Gauge]:
    """Register the gauge of each metric that declares one."""
    return {
        name: _gauge(metric.gauge, text, *([metric.label] if metric.label else []))
        for name, metric, text in declared(model)
        if metric.gauge is not None
    }


_STEP_GAUGES = _gauges(StepMetrics)
_CLIENT_GAUGES = _gauges(ClientFigures)
_SOURCE_GAUGES = _gauges(SourceFigures)
_STEP = _gauge("step", "Last finished training step.")
_LAST_STEP = _gauge("last_step_timestamp_seconds", "Unix time of the last finished training step.")
_EVALUATION = _gauge("evaluation_reward_mean_logits", "Mean fused reward of the last evaluation.")
_STEP_SECONDS = Histogram(
    "mor_trainer_step_seconds",
    "Duration of a training step.",
    ("run",),
    buckets=(0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 120, 300),
)
_PUBLICATION = Histogram("mor_trainer_weight_publication_seconds", "Duration of writing a weights version.", ("run",))
_ENTRIES = _gauge("stream_entries", "Entries of a stream that its stage has not settled.", "stream")
_PAUSED = _gauge("run_paused", "1 while the run is paused.")
_DISK_FULL = _gauge("run_disk_full", "1 while the run waits for room on a disk.")
_BOUND = _gauge("staleness_bound_updates", "Staleness that the run allows.")
_OLDEST = _gauge("stream_oldest_seconds", "Age of the oldest unsettled entry of a stream.", "stream")
TRACKER_LOST = Counter("mor_trainer_tracker_lost_total", "Figures that a tracker did not take.", ("tracker",))
HISTORY_OWNED = Gauge("mor_trainer_history_owned", "1 if this run control owns the history, 0 if it waits.")
_ALERTS = Counter("mor_trainer_alerts_total", "Alerts by name.", ("run", "name"))
_OF_A_RUN = (
    *_STEP_GAUGES.values(),
    *_CLIENT_GAUGES.values(),
    *_SOURCE_GAUGES.values(),
    *(_STEP, _LAST_STEP, _EVALUATION, _STEP_SECONDS, _PUBLICATION, _ALERTS),
    *(_ENTRIES, _OLDEST, _PAUSED, _DISK_FULL, _BOUND),
)


def observe(event: EventRecord, spec: RunSpec) -> None:
    """Set the metrics that an event reports; of sources, those that the run has."""
    run, data = event.run, event.data
    if event.kind == "step":
        _observe_step(event, spec)
    elif event.kind == "weights":
        _PUBLICATION.labels(run).observe(data["seconds"])
    elif event.kind == "evaluation" and data["reward"] is not None:
        _EVALUATION.labels(run).set(data["reward"])


def _observe_step(event: EventRecord, spec: RunSpec) -> None:
    run, metrics = event.run, StepMetrics.read(event.data)
    _STEP.labels(run).set(event.step)
    _LAST_STEP.labels(run).set(event.stamps["trainer"])
    if metrics.step_seconds is not None:
        _STEP_SECONDS.labels(run).observe(metrics.step_seconds)
    for name, gauge in _STEP_GAUGES.items():
        _set(gauge, getattr(metrics, name), run)
    for client, figures in metrics.clients.items():
        for name, gauge in _CLIENT_GAUGES.items():
            _set(gauge, getattr(figures, name), run, client)
    for source in spec.sources:
        if (drawn := metrics.sources.get(source.name)) is not None:
            for name, gauge in _SOURCE_GAUGES.items():
                _set(gauge, getattr(drawn, name), run, source.name)


def _set(gauge: Gauge, value: float | BaseModel | None, *labels: str) -> None:
    """Set a gauge to a number, or by the names of a model's numbers; a value that is not known stays as it was."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            _set(gauge, getattr(value, name), *labels, name)
    elif value is not None:
        gauge.labels(*labels).set(value)


def count_alert(run: str, name: str) -> None:
    """Count an alert that the training process or run control raised."""
    _ALERTS.labels(run, name).inc()


def observe_run(run: str, state: RunState, spec: RunSpec) -> None:
    """Set the metrics of a run's state."""
    _PAUSED.labels(run).set(state is RunState.paused)
    _BOUND.labels(run).set(spec.max_staleness)


def observe_disk_full(run: str, waits: bool) -> None:
    """Set whether a run waits for room on a disk."""
    _DISK_FULL.labels(run).set(waits)


def observe_stream(run: str, stream: str, backlog: Backlog) -> None:
    """Set the metrics of a stream's backlog."""
    _ENTRIES.labels(run, stream).set(backlog.entries)
    _OLDEST.labels(run, stream).set(backlog.oldest_s)


def forget(run: str) -> None:
    """Remove the series of a run that is over, so that their number stays bounded."""
    for metric in _OF_A_RUN:
        metric.remove_by_labels({"run": run})
