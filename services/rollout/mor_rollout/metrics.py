"""Prometheus metrics of this service."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
"""Buckets from a swap of a tiny model to the default limit of sampling a group."""

TOKENS = Counter("mor_rollout_tokens_total", "Tokens sampled for groups and chat.", ["purpose"])
PROMPT_TOKENS = Counter("mor_rollout_prompt_tokens_total", "Prompt tokens encoded, image tokens included.")
GROUPS = Counter("mor_rollout_groups_total", "Groups sampled and forwarded.", ["purpose"])
FAILURES = Counter("mor_rollout_failures_total", "Attempts at a group that failed.", ["reason"])
DEAD = Counter("mor_rollout_dead_letters_total", "Groups sent to the dead letters.", ["reason"])
IN_FLIGHT = Gauge("mor_rollout_groups_in_flight", "Groups being processed.")
CHATS = Gauge("mor_rollout_chats_in_flight", "Chat completions being sampled.")
QUEUE_WAIT = Histogram(
    "mor_rollout_queue_wait_seconds", "Time from the publication of a prompt to its reading.", buckets=_SECONDS
)
GENERATE = Histogram("mor_rollout_generate_seconds", "Time to sample one group.", buckets=_SECONDS)
VERSION = Gauge("mor_rollout_weights_version", "Version of the policy in use.")
PULL = Histogram("mor_rollout_weights_pull_seconds", "Time to pull and verify a version's files.", buckets=_SECONDS)
DELTAS = Counter(
    "mor_rollout_weight_deltas_total", "Deltas of weights: used, or given up for the whole version.", ["outcome"]
)
DRAIN = Histogram(
    "mor_rollout_swap_drain_seconds", "Time a swap waits for groups of the old version.", buckets=_SECONDS
)
SWAP = Histogram(
    "mor_rollout_swap_seconds", "Time to swap weights in place, with caches and read-back.", buckets=_SECONDS
)
KEPT = Counter("mor_rollout_kept_groups_total", "Groups that continued under newer weights, counted at each swap.")
SWAPS = Counter("mor_rollout_swaps_total", "Weight swaps.", ["outcome"])
