"""Groups are divided into requests that no service refuses as a whole."""

from __future__ import annotations

import io

from mor_core.image_budget import MOST_PIXELS
from mor_core.images import sha256
from mor_core.request_batching import split_requests
from mor_core.wire import ImagePart, Message, ScoreItem
from PIL import Image


def test_a_request_keeps_to_the_budget_of_pixels() -> None:
    side = 5000
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    contents = [content.getvalue() + b"\0" * place for place in range(25)]
    images = {sha256(content): content for content in contents}
    items = [
        ScoreItem(item_id=digest, messages=(Message(role="user", content=(ImagePart.of(digest),)),), responses=("a",))
        for digest in images
    ]
    requests = split_requests(items, images, most_items=64, most_bytes=None)
    assert [item for request in requests for item in request] == items
    assert max(len(request) for request in requests) == MOST_PIXELS // side**2
