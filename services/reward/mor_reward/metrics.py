"""Prometheus metrics of the reward service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("mor_reward_requests", "Score requests, by HTTP status.", ["status"])
REQUEST_SECONDS = Histogram(
    "mor_reward_request_seconds",
    "Time to answer a score request that was scored.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
ITEMS = Counter("mor_reward_items", "Items answered, by their status.", ["status"])
RESPONSES = Counter("mor_reward_responses", "Responses that got a score.")
BATCH_RESPONSES = Histogram(
    "mor_reward_batch_responses",
    "Responses scored in one pass of the model.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
BATCH_SECONDS = Histogram(
    "mor_reward_batch_seconds",
    "Time of one pass of the model, decoding of pictures included.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
QUEUED_RESPONSES = Gauge("mor_reward_queued_responses", "Responses that wait for the model.")
CACHE_LOOKUPS = Counter("mor_reward_cache_lookups", "Look-ups in the caches.", ["cache", "result"])
ERRORS = Counter("mor_reward_errors", "Requests and items that were not scored, by reason.", ["reason"])
ANSWERS_REFUSED = Counter("mor_reward_answers_refused", "Items that were not scored because a budget is used up.")
QUERY_LOG_LOST = Counter("mor_reward_query_log_lost", "Lines that the query log lost, for want of room.")


def count_lookups(cache: str) -> Callable[[bool], None]:
    """Return a function that counts a look-up in ``cache`` as a hit (``True``) or a miss."""
    hits, misses = (CACHE_LOOKUPS.labels(cache=cache, result=result) for result in ("hit", "miss"))
    return lambda found: (hits if found else misses).inc()
