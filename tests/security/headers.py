"""Headers that a response of any service must have."""

from __future__ import annotations

import httpx

EXPECTED = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_NEEDED = ("default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")


def check_headers(reply: httpx.Response) -> None:
    """
    Raises:
        AssertionError: a browser may run, frame, leak or keep the response.
    """
    told = f"{reply.request.method} {reply.request.url}: {reply.status_code} {dict(reply.headers)}"
    for name, value in EXPECTED.items():
        assert reply.headers.get_list(name) == [value], f"{name} of {told}"
    [policy] = reply.headers.get_list("content-security-policy")
    assert set(_NEEDED) <= {part.strip() for part in policy.split(";")}, told
    assert "unsafe" not in policy, told
    assert "camera=()" in reply.headers["permissions-policy"], told
    of_page = reply.headers.get("content-type", "").startswith(("text/html", "text/css", "text/javascript"))
    assert reply.headers.get_list("cache-control") == (["no-cache"] if of_page else ["no-store"]), told
