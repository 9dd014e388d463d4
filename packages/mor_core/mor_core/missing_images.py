"""Images that travel once: a request names them by hash, and carries the bytes of those that the service asked for.

A service that lacks some answers 409 with ``{"missing_images": [hashes]}``. The caller repeats the request with their
bytes, and the service keeps them for later requests.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import pydantic_core
from pydantic import TypeAdapter, ValidationError

from mor_core.byte_cache import ByteBoundCache
from mor_core.errors import Conflict, Invalid
from mor_core.wire import Messages, Sha256, image_hashes

MOST_ROUNDS = 3
"""Requests per call: by hash, with the missing images, and once more for images that the service evicted meanwhile."""
MISSING_BYTES = 64 << 10
"""Largest list of missing images that is read: about 960 hashes."""
_MISSING: TypeAdapter[set[str]] = TypeAdapter(set[Sha256])


class MissingImages(Conflict):
    """Images that the service does not hold; the caller repeats the request with their bytes."""

    title = "Missing images"

    def __init__(self, missing: list[str]) -> None:
        super().__init__(f"{len(missing)} pictures are missing; send their bytes in 'images'")
        self.missing = missing


class ImageCache:
    """Images of earlier requests, at most ``bound`` bytes together. Not safe for use by several threads.

    ``largest``: bytes of an image above which it is not kept.
    """

    def __init__(
        self, bound: int, largest: int | None = None, looked_up: Callable[[bool], None] = lambda found: None
    ) -> None:
        self._largest = bound if largest is None else largest
        self._held = ByteBoundCache[bytes](bound, len, looked_up)

    def keep(self, images: Mapping[str, bytes], owner: Hashable = None) -> None:
        """Keep the images of a request, whose hashes were checked, for later requests of the same ``owner``."""
        for digest, content in images.items():
            if len(content) <= self._largest:
                self._held.put((owner, digest), content)

    def resolve(
        self, conversations: Iterable[Messages], sent: Mapping[str, bytes], owner: Hashable = None
    ) -> dict[str, bytes]:
        """Return the images that the conversations name, from the request itself or an earlier one of ``owner``.

        Raises:
            MissingImages: neither has them.
        """
        named = dict.fromkeys(digest for messages in conversations for digest in image_hashes(messages))
        found = {digest: sent.get(digest) or self._held.get((owner, digest)) for digest in named}
        if missing := [digest for digest, content in found.items() if content is None]:
            raise MissingImages(missing)
        return {digest: content for digest, content in found.items() if content is not None}


class ImageRounds:
    """Caller's side of one request: the images to send, which grow with each answer that asks for more."""

    def __init__(self, images: Mapping[str, bytes]) -> None:
        """``images``: those that the request names."""
        self._images = images
        self.sent: dict[str, bytes] = {}
        """Images for the next request."""

    def take(self, body: bytes) -> None:
        """Take the 409 answer ``body``.

        Raises:
            Invalid: it names no image, or one that the request does not name.
        """
        missing = parse_missing_images(body)
        if not missing <= self._images.keys():
            raise Invalid("requested images that the request does not name")
        self.sent |= {digest: self._images[digest] for digest in missing}


def parse_missing_images(body: bytes) -> set[str]:
    """Return the hashes in a 409 response.

    Raises:
        Invalid: it names none.
    """
    try:
        parsed: Any = pydantic_core.from_json(body)
        missing = _MISSING.validate_python(parsed["missing_images"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise Invalid("answered 409 without a list 'missing_images'") from error
    if not missing:
        raise Invalid("answered 409 with an empty list 'missing_images'")
    return missing
