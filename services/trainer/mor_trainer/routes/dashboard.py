"""Routes of the dashboard, whose files ``make dashboard`` builds from ``services/trainer/dashboard``."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from mor_core.auth import public
from mor_core.response_headers import page_headers
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOLDER = Path(__file__).parent.parent / "static"
_HEADERS = page_headers("blob: data:")


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def add_dashboard(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files below ``/static``. They need no token and contain nothing of a run."""
    app.mount("/static", public(_Files(directory=_FOLDER)))

    @app.get("/", include_in_schema=False)
    @public
    async def page() -> FileResponse:
        return FileResponse(_FOLDER / "index.html", headers=_HEADERS)
