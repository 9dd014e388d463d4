"""Pictures become upright 8-bit RGB, whatever the file has, by the rules that ``mor_core.images`` states."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core import images
from mor_core.errors import Invalid
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

SIDE = 16
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def grey(content: bytes) -> np.ndarray:
    decoded = np.asarray(images.decode(content))
    assert (decoded == decoded[..., :1]).all(), "greyscale stays grey"
    return decoded[..., 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (SIDE, 2 * SIDE), "blue")
    stored.paste("red", (0, 0, SIDE // 2, SIDE // 2))
    content = encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(stored, exif=exif))))
    found = images.decode(content)
    assert found.size == wanted.size
    difference = np.abs(np.asarray(found, float) - np.asarray(wanted.convert("RGB"), float))
    assert difference.mean() < 10


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"\xff" * 40])
def test_an_unreadable_orientation_counts_as_upright(block: bytes) -> None:
    assert images.decode(encoded(Image.new("RGB", (SIDE, 2 * SIDE)), "JPEG", exif=block)).size == (SIDE, 2 * SIDE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_16_bit_greyscale_is_scaled_from_the_bits_in_use(kind: str, bits: int) -> None:
    deep = Image.fromarray(np.rint(RAMP * (2**bits - 1)).astype(np.uint16))
    assert np.abs(grey(encoded(deep, kind)) - RAMP * 255).max() <= 1


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (RAMP.astype(np.float32), RAMP),
        ((RAMP * 0.5).astype(np.float32), RAMP * 0.5),
        ((RAMP * 4000 - 1000).astype(np.float32), RAMP),
        ((RAMP * 4000 - 1000).astype(np.int32), RAMP),
        ((RAMP * 4000 + 70_000).astype(np.int32), RAMP),
        (np.full((SIDE, SIDE), 3.0, np.float32), np.ones((SIDE, SIDE))),
        (np.full((SIDE, SIDE), np.nan, np.float32), np.zeros((SIDE, SIDE))),
    ],
    ids=["float", "dark float", "float of Hounsfield units", "signed", "over 16 bits", "one value", "not a number"],
)
def test_float_and_signed_greyscale_is_scaled_to_its_range(values: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(grey(encoded(Image.fromarray(values), "TIFF")) - wanted * 255).max() <= 1


def test_unsigned_greyscale_of_32_bits_has_no_negative_pixels() -> None:
    values = np.array([[0, 1 << 31, (1 << 32) - 1]], np.uint32)
    signed = encoded(Image.fromarray(values.view(np.int32)), "TIFF")
    sample_format, unsigned = struct.pack("<HHIHH", 339, 3, 1, 2, 0), struct.pack("<HHIHH", 339, 3, 1, 1, 0)
    assert sample_format in signed
    assert grey(signed.replace(sample_format, unsigned)).tolist() == [[0, 128, 255]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32), min_size=4, max_size=4))
def test_every_float_picture_is_drawn_in_the_order_of_its_values(values: list[float]) -> None:
    drawn = grey(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))[0].tolist()
    finite = sorted((value, shade) for value, shade in zip(values, drawn, strict=True) if np.isfinite(value))
    assert [shade for _, shade in finite] == sorted(shade for _, shade in finite)


def test_the_transparent_value_of_a_16_bit_png_is_white() -> None:
    deep = Image.fromarray(np.array([[0, 40_000]], np.uint16))
    assert grey(encoded(deep, transparency=0)).tolist() == [[255, round(40_000 / 257)]]


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_transparency_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0)).convert(mode)
    assert images.decode(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_palette_and_cmyk_have_the_colours_of_rgb() -> None:
    red = Image.new("RGB", (SIDE, SIDE), "red")
    for content in (encoded(red.quantize(4)), encoded(red.convert("CMYK"), "TIFF"), encoded(red, "GIF")):
        assert images.decode(content).getpixel((3, 3)) == (255, 0, 0)
    found = images.decode(encoded(red.convert("CMYK"), "JPEG", quality=95)).getpixel((3, 3))
    assert isinstance(found, tuple)
    assert np.abs(np.array(found) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_frames_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    found = images.decode(content).getpixel((3, 3))
    assert isinstance(found, tuple)
    assert np.abs(np.array(found) - (255, 0, 0)).max() < 3
    assert images.media_type(content) == f"image/{'jpeg' if kind == 'MPO' else kind.lower()}"


def test_a_colour_profile_changes_no_pixel() -> None:
    picture = Image.effect_noise((SIDE, SIDE), 60).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for kind in ("PNG", "TIFF"):
        plain, profiled = encoded(picture, kind), encoded(picture, kind, icc_profile=profile)
        assert images.decode(plain).tobytes() == images.decode(profiled).tobytes()


def test_metadata_over_the_limits_of_the_png_reader_is_named() -> None:
    picture = Image.new("RGB", (SIDE, SIDE))
    one, many = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    one.add_text("comment", "x" * (8 << 20), zip=True)
    for place in range(80):
        many.add_text(f"comment {place}", "x" * (1 << 20), zip=True)
    for content in (
        encoded(picture, pnginfo=one),
        encoded(picture, pnginfo=many),
        encoded(picture, icc_profile=b"x" * (8 << 20)),
    ):
        with pytest.raises(Invalid, match=r"text or colour profile is over the limits .*; save it without metadata"):
            images.decode(content)


def test_a_jpeg_with_further_pictures_has_the_limit_of_scans() -> None:
    frames = [Image.effect_noise((SIDE, SIDE), 60).convert("RGB") for _ in range(2)]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:], progressive=True)
    with pytest.raises(Invalid, match="scans"):
        images.decode(content + b"\xff\xda" * 101)
