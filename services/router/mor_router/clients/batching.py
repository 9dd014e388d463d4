"""Cutting a set of groups into requests that respect a client's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mor_core.wire import Limits, ScoreItem, ScoreRequest, image_hashes

_OVERHEAD = 1 << 10


def body(items: Sequence[ScoreItem], images: Mapping[str, bytes]) -> bytes:
    """The JSON of a ``ScoreRequest``; ``images`` are encoded bytes, not base64."""
    request = ScoreRequest.model_construct(items=tuple(items), images=dict(images))
    return request.model_dump_json().encode()


def cut(
    items: Sequence[ScoreItem], images: Mapping[str, bytes], limits: Limits | None, items_per_request: int
) -> list[list[ScoreItem]]:
    """``items`` in order, in as few requests as the limits allow. An item that alone has too many bytes goes out all
    the same: the client may hold its images already, and says itself what is too much."""
    if limits is not None:
        items_per_request = min(items_per_request, limits.items)
    requests: list[list[ScoreItem]] = []
    size = 0
    shown: set[str] = set()
    for item in items:
        new = set(image_hashes(item.messages)) - shown
        added = _bytes(item) + sum(_encoded(images[digest]) for digest in new)
        full = not requests or len(requests[-1]) >= items_per_request
        if limits is not None and not full:
            full = size + added > limits.request_bytes
        if full:
            requests.append([])
            size, shown = _OVERHEAD, set()
            new = set(image_hashes(item.messages))
            added = _bytes(item) + sum(_encoded(images[digest]) for digest in new)
        requests[-1].append(item)
        size, shown = size + added, shown | new
    return requests


def _bytes(item: ScoreItem) -> int:
    return len(item.model_dump_json().encode())


def _encoded(content: bytes) -> int:
    return 80 + (len(content) + 2) // 3 * 4
