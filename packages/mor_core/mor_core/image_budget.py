"""One budget for all images of a request, whether it carries them or names them, and the threads that decode them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar
from weakref import WeakKeyDictionary

from mor_core import images
from mor_core.errors import Invalid, TooLarge
from mor_core.timed_calls import TimedCalls

T = TypeVar("T")

MOST_IMAGES = 1024
"""Distinct images of a request: four for each of 256 groups."""
MOST_BYTES = 64 << 20
"""Encoded bytes of all images of a row of data: as many as services take in a request by default."""
MOST_PIXELS = 4 * images.MAX_PIXELS
"""Pixels of all images of a request: 16 photographs of 16 megapixels, or 1024 pictures of 512 x 512."""

_AT_ONCE = 2
"""Requests whose images are decoded at a time: each may take 192 MiB."""
_LONGEST_S = 300.0
"""Longest decoding of the images of a request, seconds: far more than any images within the budget take."""
_calls: WeakKeyDictionary[asyncio.AbstractEventLoop, TimedCalls] = WeakKeyDictionary()
"""By event loop, of which a process has one."""


async def on_decoder(work: Callable[[], T]) -> T:
    """Run ``work``, which decodes untrusted images, on a thread for it. Cancelled while it waits, it never runs.

    Raises:
        Invalid: it took too long.
        Unavailable: too many such calls have not ended.
    """
    loop = asyncio.get_running_loop()
    if (calls := _calls.get(loop)) is None:
        calls = _calls[loop] = TimedCalls("the decoding of images", _LONGEST_S, at_once=_AT_ONCE)
    return await calls.run_async(work)


class ImageBudget:
    """Images that one request may still have, ``most_bytes`` encoded bytes together.

    An image that cannot be decoded costs no pixels: decoding refuses it by its header, for its own group.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._images = MOST_IMAGES
        self._bytes = most_bytes
        self._pixels = MOST_PIXELS

    def spend(self, *contents: bytes) -> None:
        """Take images from the budget, by their lengths and by the sizes that their headers state; all or none.

        Raises:
            TooLarge: the budget has too little left.
        """
        count, size = self._images - len(contents), self._bytes - sum(map(len, contents))
        if count < 0:
            raise TooLarge(f"over {MOST_IMAGES} images; send fewer in one request")
        if size < 0:
            raise TooLarge(f"the images have over {self._most_bytes} bytes together; send fewer, or scale them down")
        pixels = self._pixels - sum(map(header_pixels, contents))
        if pixels < 0:
            raise TooLarge(f"the images have over {MOST_PIXELS} pixels together; send fewer, or scale them down")
        self._images, self._bytes, self._pixels = count, size, pixels


def header_pixels(content: bytes) -> int:
    """Return the number of pixels that an image's header states; 0 where it cannot be decoded."""
    with suppress(Invalid, TooLarge):
        return images.pixels(content)
    return 0


def check_named(contents: Mapping[str, bytes]) -> None:
    """Check that each image has the hash that names it.

    Raises:
        Invalid: an image has another hash.
    """
    for digest, content in contents.items():
        found = images.sha256(content)
        if found != digest:
            raise Invalid(f"image {digest[:12]}: its bytes have SHA-256 {found[:12]}; send it under that hash")
