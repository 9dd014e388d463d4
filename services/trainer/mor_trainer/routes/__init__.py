"""Routes of run control, one module for each resource."""

from mor_trainer.routes import (
    alerts,
    audits,
    clients,
    dead_letters,
    events,
    metrics_csv,
    runs,
    status,
    storage,
    weights,
    workers,
)

ROUTERS = (
    runs.router,
    status.polled,
    *(
        part.router
        for part in (status, metrics_csv, events, clients, audits, dead_letters, alerts, weights, workers, storage)
    ),
)
"""In the order in which paths are matched."""
