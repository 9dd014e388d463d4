"""docs/routes.md, generated from the HTTP services."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute
from mor_core import health, service_info
from mor_reward.app import create_app as reward
from mor_reward.config import RewardSettings
from mor_rollout.app import create_app as rollout
from mor_rollout.config import RolloutSettings
from mor_router.app import create_app as router
from mor_router.config import RouterSettings
from mor_trainer.app import create_app as control
from mor_trainer.config import ControlSettings

_HEAD = """# Routes

Every HTTP route of every service. `/docs` of a running service is its OpenAPI page, with all fields and examples.
Errors are `application/problem+json` (RFC 9457) with a remedy. These pages explain the routes:
[status of a run](status.md), [objectives](objectives.md), [client lifecycle](client-lifecycle.md),
[the reward contract](reward-contract.md).

`python docs/generate.py` writes this page from the code; a test fails when it is out of date.
"""


@cache
def services() -> dict[str, FastAPI]:
    """Return the app of each service by its title."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scorer.py").write_text("def score(messages, responses, images): return [0.0 for _ in responses]\n")
        return {
            "Run control: `mor-trainer serve`": control(ControlSettings(runs_dir=folder)),
            "Router: `mor-router serve`": router(RouterSettings()),
            "Rollout: `mor-rollout serve`": rollout(RolloutSettings(model="any/model")),
            "A client's reward service: `mor-reward serve`": reward(
                RewardSettings(function=f"{folder / 'scorer.py'}:score", threads=1)
            ),
        }


def page() -> str:
    """Return the whole page as Markdown."""
    return _HEAD + "".join(_section(title, app, belongs) for title, app, belongs in sections())


def sections() -> list[tuple[str, FastAPI, Callable[[APIRoute], bool]]]:
    """Return the sections of the page: title, app, and the test whether a route belongs there."""
    shared = {
        route.path
        for part in (health.router, service_info.router)
        for route in part.routes
        if isinstance(route, APIRoute) and is_api(route)
    }
    apps = services()
    own = [(title, app, lambda route: route.path not in shared) for title, app in apps.items()]
    return [("All services", next(iter(apps.values())), lambda route: route.path in shared), *own]


def _section(title: str, app: FastAPI, belongs: Callable[[APIRoute], bool]) -> str:
    rows = [_row(route) for route in app.routes if isinstance(route, APIRoute) and is_api(route) and belongs(route)]
    return f"\n## {title}\n\n| route | purpose |\n|---|---|\n{''.join(rows)}"


def is_api(route: object) -> bool:
    return isinstance(route, APIRoute) and route.include_in_schema


def _row(route: APIRoute) -> str:
    if not route.summary:
        raise SystemExit(f"route {route.path} has no summary")
    methods = ", ".join(sorted(route.methods))
    return f"| `{methods} {route.path}` | {route.summary.rstrip('.')} |\n"
