"""Page ``/docs``: Swagger UI on the service's own OpenAPI document, with files from this machine alone."""

from __future__ import annotations

import html
from importlib import resources

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from mor_core.auth import public
from mor_core.errors import NotFound
from mor_core.response_headers import page_headers

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<script defer src="docs/swagger-ui-bundle.js"></script>
<script defer src="docs/start.js"></script>
</head>
<body><div id="swagger-ui"><noscript>JavaScript is off; openapi.json has the same content.</noscript></div></body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false,
  queryConfigEnabled: false,
  validatorUrl: null,
});
"""
"""Inline in the page it would need an exception of the content security policy."""
_TYPES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_HEADERS = page_headers("data:")


def add_api_page(app: FastAPI) -> None:
    """Serve the page at ``/docs``. It needs no token and contains nothing but the OpenAPI document."""
    page = _PAGE.format(title=html.escape(app.title))

    @app.get("/docs", include_in_schema=False)
    @public
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers=_HEADERS)

    @app.get("/docs/{file}", include_in_schema=False)
    @public
    def docs_file(file: str) -> Response:
        if file == "start.js":
            return Response(_START, headers=_HEADERS, media_type="text/javascript")
        if file not in _TYPES:
            raise NotFound(f"/docs has no file {file[:80]!r}; open /docs")
        content = resources.files("fastapi_swagger").joinpath("resources", file).read_bytes()
        return Response(content, headers=_HEADERS, media_type=_TYPES[file])
