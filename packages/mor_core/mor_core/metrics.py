"""Prometheus metrics of every service."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

TOKENS_FILE_BROKEN = Gauge(
    "mor_tokens_file_broken", "1 while the tokens file cannot be used and its last good tokens stay in use"
)
DISK_FULL = Gauge("mor_disk_full", "1 while the last write of a writer found no room on its disk", ["writer"])
DISK_FREE = Gauge("mor_disk_free_bytes", "Bytes that are free for this service on the disk of a folder", ["folder"])
DISK_SIZE = Gauge("mor_disk_size_bytes", "Size of the disk of a folder", ["folder"])
TASK_RESTARTS = Counter("mor_task_restarts", "Background tasks that failed and were started again", ["task"])
CERTIFICATE_EXPIRY = Gauge(
    "mor_certificate_expiry_timestamp_seconds", "End of validity of the certificate in use, Unix time", ["settings"]
)
CERTIFICATE_RELOAD_FAILED = Gauge(
    "mor_certificate_reload_failed",
    "1 while certificate files that changed cannot be used and the last good ones stay in use",
    ["settings"],
)
