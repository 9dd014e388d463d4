"""Tables of scope, route and field in docs/security.md, from the access and the marks that the code declares."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi.routing import APIRoute
from mor_core.auth import Access, Scope, access_of, marks_of
from mor_core.visibility import HiddenFrom, OwnRows

from generators.routes import is_api, sections

_COLUMNS = sorted(Scope, key=lambda scope: scope is Scope.admin)
"""All scopes in their own order, ``admin`` last."""


def tables() -> str:
    """Return a table of scope and route for each service, and one of the fields that a scope does not get."""
    routes = {
        title: [route for route in app.routes if isinstance(route, APIRoute) and is_api(route) and belongs(route)]
        for title, app, belongs in sections()
    }
    fields = "".join(row for own in routes.values() for route in own for row in _fields(route))
    access = "".join(_section(title, own) for title, own in routes.items())
    return f"{access}\n### Fields\n\n| route | field | limit |\n|---|---|---|\n{fields}"


def _section(title: str, routes: list[APIRoute]) -> str:
    head = f"\n### {title}\n\n| route | none | {' | '.join(_COLUMNS)} |\n|---|{'---|' * (1 + len(_COLUMNS))}\n"
    return head + "".join(_row(route) for route in routes)


def _name(route: APIRoute) -> str:
    return f"`{', '.join(sorted(route.methods))} {route.path}`"


def _declared(route: APIRoute) -> Access:
    access = access_of(route)
    if access is None:
        raise SystemExit(f"route {route.path} declares no access: depend on require(...), or mark it public")
    return access


def _row(route: APIRoute) -> str:
    access = _declared(route)
    cells = ["yes" if access.scopes is None else "", *(_cell(access, scope) for scope in _COLUMNS)]
    return f"| {_name(route)} | {' | '.join(cells)} |\n"


def _cell(access: Access, scope: Scope) -> str:
    if access.scopes is None:
        return "yes"
    if scope not in access.scopes:
        return ""
    return "own" if access.own is not None and scope is Scope.client else "yes"


def _fields(route: APIRoute) -> Iterator[str]:
    admitted = _declared(route).scopes or frozenset()
    for path, mark in marks_of(route):
        limited = sorted(admitted & (mark.scopes if isinstance(mark, HiddenFrom) else {Scope.client}))
        if not limited:
            continue
        if isinstance(mark, OwnRows):
            limit = "client: its own rows"
        elif mark.but:
            limit = f"{', '.join(limited)}: only {', '.join(f'`{kept}`' for kept in mark.but)}"
        else:
            limit = f"{', '.join(limited)}: null"
        yield f"| {_name(route)} | `{path}` | {limit} |\n"
