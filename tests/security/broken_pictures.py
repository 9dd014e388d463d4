"""Mutants of small valid pictures in every format that is read, and headers that promise too much."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from random import Random

from PIL import Image

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
_OPTIONS: dict[str, tuple[tuple[str, dict[str, object]], ...]] = {
    "PNG": (("RGB", {}), ("RGBA", {}), ("P", {"transparency": 0}), ("I;16", {}), ("1", {}), ("LA", {})),
    "JPEG": (("RGB", {}), ("L", {"progressive": True}), ("CMYK", {})),
    "GIF": (("P", {"save_all": True}), ("L", {"transparency": 3, "interlace": 1})),
    "BMP": (("RGB", {}), ("P", {}), ("1", {})),
    "TIFF": (("RGB", {"compression": "tiff_lzw"}), ("RGBA", {}), ("L", {"compression": "tiff_adobe_deflate"}),
             ("F", {}), ("1", {"compression": "group4"}), ("CMYK", {"compression": "packbits"}), ("I;16", {})),
    "WEBP": (("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True})),
}  # fmt: skip
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def valid(kind: str) -> list[bytes]:
    """Return small pictures of a format, in the modes and compressions that it has."""
    found = []
    for mode, options in _OPTIONS[kind]:
        picture = Image.linear_gradient("L").resize((24, 17)).convert("RGBA").convert(mode.partition(";")[0])
        if mode == "I;16":
            picture = Image.frombytes("I;16", (24, 17), bytes(range(256)) * 3 + bytes(48))
        out = io.BytesIO()
        picture.save(out, kind, **options)
        found.append(out.getvalue())
    return found


def mutants(kind: str, count: int, seed: int) -> Iterator[bytes]:
    """Yield ``count`` broken pictures: flipped, cut, repeated, swapped and overwritten bytes, mostly in the header."""
    chance = Random(seed)
    whole = valid(kind)
    for _ in range(count):
        content = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            _mutate(content, chance)
        yield _with_sums(bytes(content)) if kind == "PNG" and chance.random() < 0.7 else bytes(content)


def _mutate(content: bytearray, chance: Random) -> None:
    if not content:
        return
    place = chance.randrange(min(len(content), 120)) if chance.random() < 0.7 else chance.randrange(len(content))
    kind = chance.randrange(7)
    if kind == 0:
        content[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        content[place] = chance.randrange(256)
    elif kind == 2:
        number = struct.pack(chance.choice("<>") + chance.choice("HI"), chance.choice(_NUMBERS) & 0xFFFF)
        content[place : place + len(number)] = number
    elif kind == 3:
        content[place : place + 4] = struct.pack(chance.choice("<>") + "I", chance.choice(_NUMBERS))
    elif kind == 4:
        del content[place:]
    elif kind == 5:
        end = place + chance.randrange(1, 40)
        content[place:place] = content[place:end] * chance.choice((1, 2, 50))
    else:
        del content[place : place + chance.randrange(1, 20)]


def _with_sums(content: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that more than the checksum is tried."""
    done, place = content[:8], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        body = content[place + 4 : place + 8 + length]
        done += content[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return done


@functools.cache
def bombs() -> dict[str, bytes]:
    """Return small files that promise or hold far more than they have bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def png(width: int, height: int, *more: bytes, pixels: bytes = b"") -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    zeros = zlib.compress(bytes(64 << 20), 9)
    return {
        "sides of 2^31": png(0x7FFFFFFF, 0x7FFFFFFF),
        "sixty-five thousand by as many": png(65_000, 65_000, pixels=zeros),
        "text of 64 MB": png(1, 1, chunk(b"zTXt", b"a\0\0" + zeros), pixels=zlib.compress(bytes(4))),
        "profile of 64 MB": png(1, 1, chunk(b"iCCP", b"a\0\0" + zeros), pixels=zlib.compress(bytes(4))),
        "pixels of 64 MB for one": png(1, 1, pixels=zeros),
        "GIF of 65535 by 65535": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;",
        "BMP of 2^30 rows": b"BM" + struct.pack("<IHHIIiiHH24x", 54, 0, 0, 54, 40, 1 << 30, 1 << 30, 1, 24),
        "a line": png(60_000_000, 1, pixels=b""),
        "nothing": b"",
        "a script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(/etc/passwd) run\n",
        "a vector drawing": b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>",
    }  # fmt: skip
