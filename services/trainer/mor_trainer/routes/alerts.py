"""Routes of alerts."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Query
from mor_core.json_route import JsonRoute
from mor_core.openapi import problems
from mor_core.run_alerts import Acknowledgement, Alert

from mor_trainer.routes.dependencies import Admin, AlertStoreDep, Number, Reader, RunStoreDep

router = APIRouter(prefix="/v1/alerts", tags=["alerts"], route_class=JsonRoute)

audit = structlog.get_logger("audit")


@router.get("", summary="Alerts, newest first", responses=problems(404))
async def list_alerts(
    *,
    alerts: AlertStoreDep,
    runs: RunStoreDep,
    _: Reader,
    run: Annotated[str | None, Query(description="Alerts of this run only.")] = None,
    acknowledged: Annotated[
        bool | None, Query(description="Acknowledged alerts only, or unacknowledged ones only.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Alert]:
    """List alerts. The same alert of the same run is one entry, with its count, until somebody acknowledges it."""
    if run is not None:
        runs.revision(run)
    return alerts.list(run, acknowledged=acknowledged, limit=limit)


@router.get("/{alert}", summary="One alert")
async def one(alert: Number, alerts: AlertStoreDep, _: Reader) -> Alert:
    return alerts.get(alert)


@router.post("/{alert}/acknowledge", summary="Acknowledge an alert")
async def acknowledge(
    alert: Number, alerts: AlertStoreDep, caller: Admin, request: Acknowledgement | None = None
) -> Alert:
    """Record that the caller handles an alert. The next occurrence is a new one; doing it twice changes nothing."""
    found = alerts.acknowledge(alert, caller.name, request.note if request else None)
    audit.info("alert acknowledged", alert=alert, name=found.name, run=found.run, by=caller.name)
    return found
