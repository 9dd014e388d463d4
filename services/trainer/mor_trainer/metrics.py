"""Prometheus metrics of the runs, set from their events and streams. One series for each run that goes on."""

from __future__ import annotations

from typing import Any

from mor_core.runs import RunSpec, RunState
from mor_core.streams import Backlog
from mor_core.wire import EventRecord
from prometheus_client import Counter, Gauge, Histogram


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"mor_trainer_{name}", text, ("run", *labels))


_STEP_GAUGES = {
    "reward_mean": _gauge("reward_mean_logits", "Mean fused reward of the last step."),
    "reward_std": _gauge("reward_std_logits", "Standard deviation of the fused rewards of the last step."),
    "mixture_entropy": _gauge("mixture_entropy_nats", "Mean entropy of the mixture weights."),
    "zero_variance_ratio": _gauge("zero_variance_group_ratio", "Share of groups whose rewards are all alike."),
    "kl": _gauge("kl_nats", "Mean KL of the policy to the reference, per token."),
    "entropy": _gauge("entropy_nats", "Mean entropy of the sampling distribution, per token."),
    "clip_low_ratio": _gauge("clip_low_ratio", "Share of tokens clipped below."),
    "clip_high_ratio": _gauge("clip_high_ratio", "Share of tokens clipped above."),
    "importance_limited_ratio": _gauge(
        "importance_limited_ratio", "Share of tokens whose ratio trainer/engine was truncated or masked."
    ),
    "grad_norm": _gauge("grad_norm", "Gradient norm before clipping."),
    "lr": _gauge("learning_rate", "Learning rate."),
    "importance_ratio_mean": _gauge("importance_ratio_mean", "Mean raw ratio trainer/engine."),
    "importance_ratio_max": _gauge("importance_ratio_max", "Largest raw ratio trainer/engine."),
    "effective_sample_share": _gauge("effective_sample_ratio", "Effective sample size over sample size."),
    "staleness_max": _gauge("staleness_updates", "Largest staleness of a trained group, updates."),
    "response_length_mean": _gauge("response_length_tokens", "Mean response length."),
    "truncation_ratio": _gauge("truncation_ratio", "Share of responses cut at max_tokens."),
    "queue_wait": _gauge("queue_wait_seconds", "Mean time from scored to read, of the groups of the last step."),
    "tokens_per_second": _gauge("tokens_per_second", "Response tokens trained on per second."),
    "weights_version": _gauge("weights_version", "Newest published weights version."),
    "groups_applied": _gauge("groups_applied", "Groups of this run that were trained on."),
    "groups_duplicate": _gauge("groups_duplicate", "Groups of this run that came back though nobody waited for them."),
    "groups_skipped": _gauge("groups_skipped", "Groups of this run replaced because their rewards were all alike."),
    "groups_dropped": _gauge("groups_dropped", "Groups dropped in this run."),
    "groups_retried": _gauge("groups_retried", "Groups issued again in this run."),
}
_STEP = _gauge("step", "Last finished training step.")
_LAST_STEP = _gauge("last_step_timestamp_seconds", "Unix time of the last finished training step.")
_SHARE = _gauge("step_share_seconds", "Seconds of the last step by share.", "share")
_CLIENT_REWARD = _gauge("client_reward_mean_logits", "Mean calibrated reward of a client.", "client")
_CLIENT_WEIGHT = _gauge("client_weight_ratio", "Mean mixture weight of a client.", "client")
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
_BOUND = _gauge("staleness_bound_updates", "Staleness that the run allows.")
_OLDEST = _gauge("stream_oldest_seconds", "Age of the oldest of them.", "stream")
TRACKER_LOST = Counter("mor_trainer_tracker_lost_total", "Figures that a tracker did not take.", ("tracker",))
_ALERTS = Counter("mor_trainer_alerts_total", "Alerts by name.", ("run", "name"))
_ALL = (
    *_STEP_GAUGES.values(),
    *(_STEP, _LAST_STEP, _SHARE, _CLIENT_REWARD, _CLIENT_WEIGHT, _EVALUATION, _STEP_SECONDS, _PUBLICATION, _ALERTS),
    *(_ENTRIES, _OLDEST, _PAUSED, _BOUND),
)


def observe(event: EventRecord) -> None:
    """Set what an event tells."""
    run, data = event.run, event.data
    if event.kind == "step":
        _observe_step(event)
    elif event.kind == "weights":
        _PUBLICATION.labels(run).observe(data["seconds"])
    elif event.kind == "evaluation" and data["reward"] is not None:
        _EVALUATION.labels(run).set(data["reward"])


def _observe_step(event: EventRecord) -> None:
    run, data = event.run, event.data
    for name, gauge in _STEP_GAUGES.items():
        if data.get(name) is not None:
            gauge.labels(run).set(data[name])
    _STEP.labels(run).set(event.step)
    _LAST_STEP.labels(run).set(event.stamps["trainer"])
    _STEP_SECONDS.labels(run).observe(data["step_seconds"])
    for share, seconds in data["seconds"].items():
        _SHARE.labels(run, share).set(seconds)
    clients: dict[str, dict[str, Any]] = data["clients"]
    for client, figures in clients.items():
        if figures["reward_mean"] is not None:
            _CLIENT_REWARD.labels(run, client).set(figures["reward_mean"])
        if figures["weight"] is not None:
            _CLIENT_WEIGHT.labels(run, client).set(figures["weight"])


def count_alert(run: str, name: str) -> None:
    """An alert was raised, by the training process or by run control."""
    _ALERTS.labels(run, name).inc()


def observe_run(run: str, state: RunState, spec: RunSpec) -> None:
    """Set what run control knows of a run."""
    _PAUSED.labels(run).set(state is RunState.paused)
    _BOUND.labels(run).set(spec.max_staleness)


def observe_stream(run: str, stream: str, backlog: Backlog) -> None:
    """Set what stands in a stream."""
    _ENTRIES.labels(run, stream).set(backlog.entries)
    _OLDEST.labels(run, stream).set(backlog.oldest_s)


def forget(run: str) -> None:
    """A run is over: its series end, so that their number stays bounded."""
    for metric in _ALL:
        metric.remove_by_labels({"run": run})
