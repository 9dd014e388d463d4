"""Division of groups into requests that respect the limits of the service that receives them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeVar

from mor_core.image_budget import MOST_IMAGES, MOST_PIXELS, header_pixels
from mor_core.wire import RewardItem, ScoreItem, image_hashes

Item = TypeVar("Item", ScoreItem, RewardItem)

_ENVELOPE_BYTES = 1 << 10
"""Bytes of a request apart from its items and images: keys, braces and separators, with room to spare."""
_IMAGE_ENTRY_BYTES = 80
"""Bytes of an image's entry apart from its base64: a SHA-256 in hex (64) with quotes, colon and comma."""


def split_requests(
    items: Sequence[Item], images: Mapping[str, bytes], *, most_items: int, most_bytes: int | None
) -> list[list[Item]]:
    """Split ``items``, in order, into as few requests as the limits allow, those of every image budget included.

    An item that alone exceeds the limit of bytes is sent all the same: the service may have its images already, and
    itself refuses a request that is too large. ``most_bytes``: of a request's body; ``None``: any number.
    """
    requests: list[list[Item]] = []
    size = pixels = 0
    included: set[str] = set()
    for item in items:
        new = set(image_hashes(item.messages)) - included
        added = _item_bytes(item) + sum(_image_bytes(images[digest]) for digest in new)
        full = not requests or len(requests[-1]) >= most_items
        if most_bytes is not None and not full:
            full = size + added > most_bytes
        shown = sum(_image_pixels(digest, images[digest]) for digest in new)
        full = full or pixels + shown > MOST_PIXELS or len(included | new) > MOST_IMAGES
        if full:
            requests.append([])
            size, included, pixels = _ENVELOPE_BYTES, set(), 0
            new = set(image_hashes(item.messages))
            added = _item_bytes(item) + sum(_image_bytes(images[digest]) for digest in new)
            shown = sum(_image_pixels(digest, images[digest]) for digest in new)
        requests[-1].append(item)
        size, included, pixels = size + added, included | new, pixels + shown
    return requests


def _item_bytes(item: ScoreItem | RewardItem) -> int:
    return len(item.model_dump_json().encode())


_pixels: OrderedDict[str, int] = OrderedDict()
_MOST_COUNTS = 4096
"""Images whose pixel count is kept: a group's images go to every client, and their headers are parsed once."""


def _image_pixels(digest: str, content: bytes) -> int:
    if digest not in _pixels:
        _pixels[digest] = header_pixels(content)
        if len(_pixels) > _MOST_COUNTS:
            _pixels.popitem(last=False)
    return _pixels[digest]


def _image_bytes(content: bytes) -> int:
    return _IMAGE_ENTRY_BYTES + (len(content) + 2) // 3 * 4
