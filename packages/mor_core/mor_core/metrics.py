"""Prometheus metrics of every service."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

TOKENS_FILE_BROKEN = Gauge(
    "mor_tokens_file_broken", "1 while the tokens file cannot be used and its last good tokens stay in use"
)
TASK_RESTARTS = Counter("mor_task_restarts", "Background tasks that failed and were started again", ["task"])
