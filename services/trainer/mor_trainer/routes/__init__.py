"""The routes of run control, one file for each noun."""

from mor_trainer.routes import alerts, clients, dead, events, runs, status, weights, worker

ROUTERS = (
    runs.router,
    status.polled,
    *(part.router for part in (status, events, clients, dead, alerts, weights, worker)),
)
"""Paths are compared in this order."""
