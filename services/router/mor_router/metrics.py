"""Prometheus metrics of the router. Labels are client names and fixed words, so they are bounded by the registry."""

from prometheus_client import Counter, Gauge, Histogram, Summary

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

CLIENT_REWARD = Summary("mor_router_client_reward_logits", "Group mean of a client's calibrated scores", ["client"])
CLIENT_REWARD_STD = Summary(
    "mor_router_client_reward_std_logits", "Within-group standard deviation of a client's calibrated scores", ["client"]
)
REWARD = Summary("mor_router_reward_logits", "Group mean of the fused reward")
REWARD_STD = Summary("mor_router_reward_std_logits", "Within-group standard deviation of the fused reward")
WEIGHT = Summary("mor_router_mixture_weight_ratio", "A client's share in the mixture of a group", ["client"])
SLOPE = Summary("mor_router_calibration_slope_logits", "A client's slope for the inputs that were scored", ["client"])
ENTROPY = Summary("mor_router_mixture_entropy_nats", "Entropy of the mixture of a group")
OOD_SCORE = Summary(
    "mor_router_beyond_anchors_ratio",
    "How far a group's input is beyond the anchors: 0 within their reach, 1 where every client counts the same",
)
DISAGREEMENT = Summary(
    "mor_router_disagreement_logits", "Weighted standard deviation over clients of a response's calibrated score"
)
CIRCUIT = Gauge("mor_router_circuit_state", "A client's circuit: 0 closed, 1 half open, 2 open", ["client"])
CLIENT_SECONDS = Histogram("mor_router_client_seconds", "Time of a call to a client", ["client"], buckets=_SECONDS)
CLIENT_FAILURES = Counter("mor_router_client_failures", "Failed calls and items of a client", ["client", "reason"])
CLIENT_RETRIES = Counter("mor_router_client_retries", "Calls to a client that were tried again", ["client"])
CLIENT_BYTES = Counter("mor_router_client_bytes", "Bytes of request and response bodies", ["client", "direction"])
STALE_CALIBRATION = Gauge(
    "mor_router_stale_calibration",
    "1 while a client serves another model version than the gate was fitted on",
    ["client"],
)
QUARANTINED = Gauge("mor_router_quarantined", "1 while a client is in quarantine: alert on it", ["client"])
INTERLEAVED = Counter(
    "mor_router_interleaved_anchors", "Anchors asked in the disguise of live groups", ["client", "status"]
)
UNASKED = Gauge(
    "mor_router_unasked_anchors", "Anchors for disguise that were never asked so; at 0 they come again", ["objective"]
)
DRIFT = Gauge(
    "mor_router_drift_evidence",
    "log10 of the latest evidence that a client's answers changed since the fit",
    ["client"],
)
DISAGREES = Gauge(
    "mor_router_disagreement_evidence",
    "log10 of the evidence that a client agrees with the others less in live groups than on anchors",
    ["client"],
)
DISTRUSTED = Gauge("mor_router_distrusted", "1 while a client is on probation for drift: alert on it", ["client"])
GROUPS = Counter("mor_router_groups", "Groups by outcome: scored, retried, dead, deferred", ["outcome"])
ZERO_VARIANCE = Counter("mor_router_zero_variance_groups", "Scored groups whose rewards are all equal")
QUEUE_WAIT = Histogram("mor_router_queue_wait_seconds", "Time from sampled to read by the router", buckets=_SECONDS)
OVERHEAD = Histogram(
    "mor_router_overhead_seconds",
    "Time of a batch of groups beyond its slowest client",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1),
)
FIT_SECONDS = Histogram("mor_router_fit_seconds", "Time to fit a gate, anchors scored already", buckets=_SECONDS)

_PER_CLIENT = (
    CLIENT_REWARD,
    CLIENT_REWARD_STD,
    WEIGHT,
    SLOPE,
    CIRCUIT,
    CLIENT_SECONDS,
    CLIENT_FAILURES,
    CLIENT_RETRIES,
    CLIENT_BYTES,
    STALE_CALIBRATION,
    QUARANTINED,
    INTERLEAVED,
    DRIFT,
    DISAGREES,
    DISTRUSTED,
)


def forget(client: str) -> None:
    """Drop the series of a client that was removed."""
    for metric in _PER_CLIENT:
        metric.remove_by_labels({"client": client})
