"""Probe item: a tiny group that an endpoint scores at its enrolment and while its circuit is open."""

from __future__ import annotations

import io

from mor_core import images
from mor_core.wire import ImagePart, Message, ScoreItem, TextPart
from PIL import Image

_SIDE_PIXELS = 64
"""Side of the picture; a reward model scales it to its own input."""


def _draw_picture() -> bytes:
    """Draw a colour gradient as PNG."""
    ramp = Image.linear_gradient("L").resize((_SIDE_PIXELS, _SIDE_PIXELS))
    content = io.BytesIO()
    Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180))).save(content, "PNG")
    return content.getvalue()


_PICTURE = _draw_picture()
PROBE_IMAGES = {images.sha256(_PICTURE): _PICTURE}
PROBE_ITEM = ScoreItem(
    item_id="trial",
    messages=(
        Message(
            role="user",
            content=(ImagePart.of(images.sha256(_PICTURE)), TextPart(text="Which colours does the picture show?")),
        ),
    ),
    responses=("Red, green and blue run into each other.", "It shows a dog."),
)
