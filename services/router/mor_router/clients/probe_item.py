"""The tiny group that tells whether an endpoint can score at all."""

from __future__ import annotations

import io

from mor_core import images
from mor_core.wire import ImagePart, Message, ScoreItem, TextPart
from PIL import Image

_SIDE = 64


def _picture() -> bytes:
    """A colour gradient as PNG."""
    ramp = Image.linear_gradient("L").resize((_SIDE, _SIDE))
    content = io.BytesIO()
    Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180))).save(content, "PNG")
    return content.getvalue()


_PICTURE = _picture()
TRIAL_IMAGES = {images.sha256(_PICTURE): _PICTURE}
TRIAL_ITEM = ScoreItem(
    item_id="trial",
    messages=(
        Message(
            role="user",
            content=(ImagePart.of(images.sha256(_PICTURE)), TextPart(text="Which colours does the picture show?")),
        ),
    ),
    responses=("Red, green and blue run into each other.", "It shows a dog."),
)
