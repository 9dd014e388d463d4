"""Headers that every response carries, so that a browser neither runs, frames, leaks nor keeps it.

A route that needs other values sets them itself: the header of a response wins over the default here. Hypertext pages
take ``page_headers``.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mor_core.service_addresses import HEADER

_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
DEFAULTS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _NOTHING,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ENCODED = [(name.lower().encode(), value.encode()) for name, value in DEFAULTS.items()]


def page_headers(images: str) -> dict[str, str]:
    """Return the headers of a page of hypertext whose scripts, styles and data come from its own origin.

    ``images``: sources of its pictures, in the words of Content Security Policy, such as ``data:``.
    """
    own = f"script-src 'self'; style-src 'self'; connect-src 'self'; img-src {images}"
    return {"Cache-Control": "no-cache", "Content-Security-Policy": f"{_NOTHING}; {own}"}


class ProtectResponses:
    """ASGI middleware that adds the headers to every response that lacks them.

    It stands outside all others: Starlette answers an unexpected error outside the middleware that an app adds.
    """

    def __init__(self, app: ASGIApp, service: str = "") -> None:
        """``service``: title of the service, which each answer names; see ``mor_core.service_addresses``."""
        self._app = app
        self._headers = [*_ENCODED, *([(HEADER.lower().encode(), service.encode())] if service else [])]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in self._headers if pair[0] not in present)]
            await send(message)

        await self._app(scope, receive, protected)
