"""What ``mor doctor`` says: one finding for each thing that was looked at."""

from __future__ import annotations

import enum

from pydantic import BaseModel


class Verdict(enum.StrEnum):
    ok = "ok"
    warning = "warning"
    failed = "failed"
    skipped = "skipped"


class Finding(BaseModel):
    check: str
    """What was looked at."""
    verdict: Verdict
    detail: str
    """What was found."""
    cure: str | None = None
    """What to do; for everything but ``ok``."""


def ok(check: str, detail: str) -> Finding:
    return Finding(check=check, verdict=Verdict.ok, detail=detail)


def warning(check: str, detail: str, cure: str) -> Finding:
    return Finding(check=check, verdict=Verdict.warning, detail=detail, cure=cure)


def failed(check: str, detail: str, cure: str) -> Finding:
    return Finding(check=check, verdict=Verdict.failed, detail=detail, cure=cure)


def skipped(check: str, detail: str, cure: str) -> Finding:
    return Finding(check=check, verdict=Verdict.skipped, detail=detail, cure=cure)
