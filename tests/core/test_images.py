"""Whatever bytes are sent as an image, decoding is bounded and fails with an error of ours."""

from __future__ import annotations

import io
import struct
import time
import zlib
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mor_core import images
from mor_core.errors import Invalid, TooLarge
from mor_core.image_budget import MOST_IMAGES, ImageBudget
from PIL import Image, PngImagePlugin

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def drawn(kind: str, side: int = 24, **options: object) -> bytes:
    content = io.BytesIO()
    picture = Image.effect_noise((side, side), 60).convert("RGB")
    picture.save(content, kind, **options)
    return content.getvalue()


def grey(mode: str, kind: str) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert("I").convert(mode).save(content, kind)
    return content.getvalue()


SEEDS = {kind: drawn(kind) for kind in FORMATS} | {
    "animated GIF": drawn("GIF", save_all=True, append_images=[Image.new("RGB", (24, 24), "red")] * 20),
    "many pages": drawn("TIFF", save_all=True, append_images=[Image.new("RGB", (24, 24), "red")] * 20),
    "progressive JPEG": drawn("JPEG", progressive=True),
    "16-bit PNG": grey("I;16", "PNG"),
    "float TIFF": grey("F", "TIFF"),
    "turned JPEG": drawn("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
}


def png_of(width: int, height: int) -> bytes:
    """Write a header that claims a size, and little else."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", SEEDS)
def test_the_first_frame_is_decoded(kind: str) -> None:
    assert images.decode(SEEDS[kind]).size == (24, 24)
    assert images.pixels(SEEDS[kind]) == 24 * 24


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    st.floats(0.2, 1),
    st.binary(max_size=30),
)
def test_a_damaged_image_is_an_error_of_its_sender(
    kind: str, changes: list[tuple[float, int]], kept: float, tail: bytes
) -> None:
    content = bytearray(SEEDS[kind])
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    damaged = bytes(content[: max(1, int(kept * len(content)))]) + tail
    for read in (images.pixels, images.decode):
        with suppress(Invalid, TooLarge):
            read(damaged)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (1 << 30, 1), (1, (1 << 31) - 1)])
def test_a_header_that_claims_a_huge_size_is_refused_at_once(width: int, height: int) -> None:
    started = time.thread_time()
    with pytest.raises((TooLarge, Invalid)):
        images.decode(png_of(width, height))
    assert time.thread_time() - started < 0.5


def test_a_bomb_of_text_in_an_image_is_an_error_of_its_sender() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (8 << 20), zip=True)
    with pytest.raises(Invalid):
        images.decode(drawn("PNG", pnginfo=text))


def test_a_jpeg_of_many_scans_is_refused() -> None:
    content = SEEDS["progressive JPEG"]
    start = content.index(b"\xff\xda")
    with pytest.raises(Invalid, match="scans"):
        images.decode(content[:start] + content[start:-2] * 50 + content[-2:])


def test_a_request_has_one_budget() -> None:
    budget = ImageBudget(1 << 20)
    with pytest.raises(TooLarge, match="pixels together"):
        for _ in range(5):
            budget.spend(png_of(8000, 8000))
    with pytest.raises(TooLarge, match="bytes together"):
        ImageBudget(10).spend(SEEDS["PNG"])
    many = ImageBudget(1 << 30)
    with pytest.raises(TooLarge, match=f"over {MOST_IMAGES} images"):
        for _ in range(MOST_IMAGES + 1):
            many.spend(b"?")
