"""Status of a run in the shape of Kubeflow Trainer's ``trainerStatus`` (KEP-2779)."""

from __future__ import annotations

from datetime import UTC, datetime

from mor_core.run_status import KubeflowMetric, TrainerStatus
from mor_core.step_metrics import StepMetrics


def trainer_status(
    *, progress: float | None, eta_s: float | None, metrics: StepMetrics | None, updated_at: float
) -> TrainerStatus:
    """Build the status from the metrics of the last step; those that are plain numbers are included."""
    numbers = {} if metrics is None else metrics.numbers()
    updated = datetime.fromtimestamp(updated_at, UTC).isoformat(timespec="seconds")
    return TrainerStatus(
        progressPercentage=None if progress is None else int(100 * progress),
        estimatedRemainingSeconds=None if eta_s is None else round(eta_s),
        metrics=tuple(KubeflowMetric(name=name, value=f"{value:.6g}") for name, value in sorted(numbers.items())),
        lastUpdatedTime=updated.replace("+00:00", "Z"),
    )
