"""Greyscale of more than 8 bits as greyscale of 8 bits, by the rules of ``mor_core.images``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

_DEPTHS = (8, 10, 12, 14, 16)
"""Bits of a pixel from cameras, scanners and medical devices, whatever the file reserves for it."""
_STRIP_PIXELS = 1 << 20
"""Pixels that are scaled at a time, which bounds the memory beside that of the picture."""
_WHITE_IS_ZERO = 0
_PHOTOMETRIC = 262
"""Tag of TIFF that says whether 0 is white."""
_SAMPLE_FORMAT, _UNSIGNED = 339, (1,)
"""Tag of TIFF that says whether values have a sign, and its default."""


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether an image is greyscale of more than 8 bits, which Pillow clips instead of scaling."""
    return image.mode.startswith("I") or image.mode == "F"


def to_8_bits(image: Image.Image) -> Image.Image:
    """Return a deep greyscale image in mode ``L``, scaled linearly."""
    import numpy as np

    black, white = _range(image)
    grey = Image.new("L", image.size)
    for top, values in _strips(image):
        finite = np.where(np.isfinite(values), values, black)
        scaled = (finite - black) * (255.0 / (white - black))
        grey.paste(Image.fromarray(np.rint(scaled).astype(np.uint8)), (0, top))
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return grey.point(lambda value: 255 - value)
    return grey


def mask_of(image: Image.Image, wanted: int) -> Image.Image:
    """Return a mask of the pixels that have the value ``wanted``."""
    import numpy as np

    mask = Image.new("L", image.size)
    for top, values in _strips(image):
        mask.paste(Image.fromarray(np.where(values == wanted, 255, 0).astype(np.uint8)), (0, top))
    return mask


def _strips(image: Image.Image) -> Iterator[tuple[int, Any]]:
    """Yield the first row and the values, float64, of strips of an image."""
    import numpy as np

    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))
        yield top, (values.view(np.uint32) if _is_unsigned(image) else values).astype(np.float64)


def _is_unsigned(image: Image.Image) -> bool:
    """Return whether 32 bits of a pixel have no sign, which Pillow's mode gives them."""
    tags = getattr(image, "tag_v2", None)
    return image.mode == "I" and tags is not None and tags.get(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED


def _range(image: Image.Image) -> tuple[float, float]:
    """Return the values that become black and white."""
    import numpy as np

    least, most = np.inf, -np.inf
    for _, values in _strips(image):
        finite = values[np.isfinite(values)]
        if finite.size:
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    if least > most:  # no pixel is finite
        return 0.0, 1.0
    usual = [1.0] if image.mode == "F" else [float((1 << bits) - 1) for bits in _DEPTHS]
    top = next((value for value in usual if least >= 0 and most <= value), None)
    if top is not None:
        return 0.0, top
    return (least, most) if most > least else (min(0.0, least), max(0.0, least))
