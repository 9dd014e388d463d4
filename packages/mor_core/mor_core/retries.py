"""Reports of retries in words: by default the library logs calls as Python objects, with their arguments."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from mor_core.failures import describe_failure

log = structlog.get_logger("mor")


def log_retries() -> None:
    """Log each retry of this process with its cause, its number and the wait."""
    set_on_retry_hooks([_log])


def report_retries(report: Callable[[str], None] | None) -> None:
    """Pass a line about each retry of this process to ``report``; ``None``: to nobody."""
    set_on_retry_hooks([] if report is None else [lambda details: report(_line(details))])


def _log(details: RetryDetails) -> None:
    cause = describe_failure(details.caused_by)
    log.warning("trying again", cause=cause, attempt=details.retry_num + 1, wait_s=round(details.wait_for, 2))


def _line(details: RetryDetails) -> str:
    return f"{describe_failure(details.caused_by)}; trying again in {details.wait_for:.1f} s"
