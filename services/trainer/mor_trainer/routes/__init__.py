"""The routes of run control, one file for each noun."""

from mor_trainer.routes import alerts, clients, dead_letters, events, runs, status, weights, workers

ROUTERS = (
    runs.router,
    status.polled,
    *(part.router for part in (status, events, clients, dead_letters, alerts, weights, workers)),
)
"""Paths are compared in this order."""
