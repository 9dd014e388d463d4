"""The routes of run control, one file for each noun."""

from mor_trainer.routes import alerts, clients, dead, events, runs, status, weights, worker

ROUTERS = tuple(part.router for part in (worker, runs, status, events, clients, dead, alerts, weights))
