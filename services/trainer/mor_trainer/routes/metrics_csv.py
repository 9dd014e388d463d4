"""Route of a run's metrics as a file for spreadsheets and notebooks."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from mor_trainer.control.metrics_csv import MetricsCsv
from mor_trainer.routes.dependencies import DatabaseDep, Reader

router = APIRouter(prefix="/v1/runs/{run}", tags=["status"])


@router.get(
    "/metrics.csv",
    summary="Metrics of every step as CSV",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/csv": {"example": "step,at,reward_mean\r\n1,2026-01-01T00:00:00.000+00:00,0.4\r\n"}}}
    },
)
async def metrics_csv(run: str, database: DatabaseDep, _: Reader) -> StreamingResponse:
    """Send every step with all its numbers, and every evaluation, as one table. Columns of clients, domains and sources
    have names such as ``clients.detail.weight``; times are ISO 8601 in UTC."""
    table = await to_thread.run_sync(MetricsCsv, database, run)
    headers = {"Content-Disposition": f'attachment; filename="{run}.csv"'}
    return StreamingResponse(table.parts(), media_type="text/csv", headers=headers)
