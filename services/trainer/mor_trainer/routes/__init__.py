"""The routes of run control, one file for each noun."""

from mor_trainer.routes import alerts, clients, dead, events, runs, status, weights, worker

ROUTERS = (
    status.polled,  # asked most, so looked at first
    *(part.router for part in (worker, runs, status, events, clients, dead, alerts, weights)),
)
