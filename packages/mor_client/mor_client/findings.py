"""Findings of ``mor doctor``: one for each check."""

from __future__ import annotations

import enum

from pydantic import BaseModel


class Verdict(enum.StrEnum):
    """Grade of a finding."""

    ok = "ok"
    warning = "warning"
    failed = "failed"
    skipped = "skipped"


class Finding(BaseModel):
    """Result of one check."""

    check: str
    """Name of the check."""
    verdict: Verdict
    detail: str
    """Observation."""
    cure: str | None = None
    """Recommended action, unless ``verdict`` is ``ok``."""


def ok(check: str, detail: str) -> Finding:
    return Finding(check=check, verdict=Verdict.ok, detail=detail)


def warning(check: str, detail: str, cure: str) -> Finding:
    return Finding(check=check, verdict=Verdict.warning, detail=detail, cure=cure)


def failed(check: str, detail: str, cure: str) -> Finding:
    return Finding(check=check, verdict=Verdict.failed, detail=detail, cure=cure)


def skipped(check: str, detail: str, cure: str) -> Finding:
    return Finding(check=check, verdict=Verdict.skipped, detail=detail, cure=cure)
