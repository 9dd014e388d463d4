"""Prometheus metrics of the router. Labels are names of clients and objectives and fixed words: their registries bound
them."""

from prometheus_client import Counter, Gauge, Histogram, Summary

# From a cache hit on loopback to the longest usual deadline of a group.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

CLIENT_REWARD = Summary("mor_router_client_reward_logits", "Group mean of a client's calibrated scores", ["client"])
CLIENT_REWARD_STD = Summary(
    "mor_router_client_reward_std_logits", "Within-group standard deviation of a client's calibrated scores", ["client"]
)
REWARD = Summary("mor_router_reward_logits", "Group mean of the fused reward")
REWARD_STD = Summary("mor_router_reward_std_logits", "Within-group standard deviation of the fused reward")
WEIGHT = Summary("mor_router_mixture_weight_ratio", "A client's share in the mixture of a group", ["client"])
SLOPE = Summary("mor_router_calibration_slope_logits", "A client's slope for the scored inputs", ["client"])
ENTROPY = Summary("mor_router_mixture_entropy_nats", "Entropy of the mixture of a group")
OOD_SCORE = Summary(
    "mor_router_ood_score_ratio",
    "Distance of a group's input from the anchors' distribution: 0 within their support, 1 where every client counts "
    "the same",
)
DISAGREEMENT = Summary(
    "mor_router_disagreement_logits", "Weighted standard deviation over clients of a response's calibrated score"
)
CIRCUIT = Gauge("mor_router_circuit_state", "A client's circuit: 0 closed, 1 half open, 2 open", ["client"])
CLIENT_SECONDS = Histogram("mor_router_client_seconds", "Time of a call to a client", ["client"], buckets=_SECONDS)
CLIENT_FAILURES = Counter("mor_router_client_failures", "Failed calls and items of a client", ["client", "reason"])
CLIENT_RETRIES = Counter("mor_router_client_retries", "Retried calls to a client", ["client"])
CLIENT_BYTES = Counter("mor_router_client_bytes", "Bytes of request and response bodies", ["client", "direction"])
STALE_CALIBRATION = Gauge(
    "mor_router_stale_calibration",
    "1 while a client serves another model version than that of the gate's fit",
    ["client"],
)
ACTIVE_CLIENTS = Gauge("mor_router_active_clients", "Active clients; without one, no group has a reward: alert on it")
STATE_PROBLEM = Gauge(
    "mor_router_state_problem", "1 while the router's state is lost, damaged or not in a snapshot on disk: alert on it"
)
QUARANTINED = Gauge("mor_router_quarantined", "1 while a client is in quarantine: alert on it", ["client"])
HONEYPOTS = Counter("mor_router_interleaved_anchors", "Honeypots: anchors sent as live groups", ["client", "status"])
UNUSED_HONEYPOTS = Gauge(
    "mor_router_unasked_anchors", "Anchors never sent as honeypots yet; at 0 they are sent again", ["objective"]
)
DRIFT = Gauge(
    "mor_router_drift_evidence",
    "log10 of the latest evidence that a client's scores changed since the fit",
    ["client"],
)
DISAGREES = Gauge(
    "mor_router_disagreement_evidence",
    "log10 of the evidence that a client agrees with the others less in live groups than on anchors",
    ["client"],
)
DISTRUSTED = Gauge("mor_router_distrusted", "1 while a client is on probation for drift: alert on it", ["client"])
UNRELIABLE = Gauge(
    "mor_router_unreliable",
    "1 while a client is on probation because groups waited for it in vain: alert on it",
    ["client"],
)
AUDITS = Counter(
    "mor_router_audits", "Audited groups that are no longer waiting for a label, by outcome", ["objective", "outcome"]
)
AUDITS_WAITING = Gauge("mor_router_audits_waiting", "Audited groups without a label", ["objective", "labelled_by"])
AUDIT_OLDEST = Gauge(
    "mor_router_audit_oldest_seconds", "Age of the oldest audited group without a label", ["objective"]
)
AUDIT_FAILURES = Counter(
    "mor_router_audit_label_failures", "Attempts of a labeller to label an audited group that failed", ["objective"]
)
AUDIT_EVIDENCE = Gauge(
    "mor_router_audit_evidence", "log10 of the evidence that a client misleads audited groups", ["client"]
)
GROUPS = Counter("mor_router_groups", "Groups by outcome: scored, retried, dead, deferred", ["outcome"])
WAITING = Gauge(
    "mor_router_waiting_groups",
    "Groups that wait for clients, or parts of the router, that are away: alert on it",
)
ZERO_VARIANCE = Counter("mor_router_zero_variance_groups", "Scored groups whose rewards are all equal")
QUEUE_WAIT = Histogram(
    "mor_router_queue_wait_seconds", "Time from the end of sampling to the router's read", buckets=_SECONDS
)
OVERHEAD = Histogram(
    "mor_router_overhead_seconds",
    "Time of a batch of groups in addition to its slowest client",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1),
)
FIT_SECONDS = Histogram("mor_router_fit_seconds", "Time to fit a gate, without scoring the anchors", buckets=_SECONDS)

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
    HONEYPOTS,
    DRIFT,
    DISAGREES,
    AUDIT_EVIDENCE,
    DISTRUSTED,
    UNRELIABLE,
)


_PER_OBJECTIVE = (UNUSED_HONEYPOTS, AUDITS, AUDITS_WAITING, AUDIT_OLDEST, AUDIT_FAILURES)


def forget_waiting_audits() -> None:
    """Remove the series that the labelling replica reports, when this one no longer is that replica."""
    AUDITS_WAITING.clear()
    AUDIT_OLDEST.clear()


def remove_objective(objective: str) -> None:
    """Remove the series of an objective that was deleted."""
    for metric in _PER_OBJECTIVE:
        metric.remove_by_labels({"objective": objective})


def remove_client(client: str) -> None:
    """Remove the series of a client that was removed."""
    for metric in _PER_CLIENT:
        metric.remove_by_labels({"client": client})
