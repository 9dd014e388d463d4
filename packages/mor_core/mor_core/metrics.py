"""Prometheus metrics of every service."""

from __future__ import annotations

from prometheus_client import Gauge

TOKENS_FILE_BROKEN = Gauge(
    "mor_tokens_file_broken", "1 while the tokens file cannot be used and its last good tokens stay in use"
)
