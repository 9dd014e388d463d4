"""Whatever a data file holds, reading ends soon, with its rows or with an error that names a line."""

from __future__ import annotations

import io
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mor_core.datafiles import read_preferences, read_prompts, write_preferences
from mor_core.datafiles.sources.foreign_files import LONGEST_START, foreign_kind
from mor_core.errors import DataFileError, Invalid
from PIL import Image

from tests.core.published_rows import PROMPTS_ONLY, PUBLISHED

_LONGEST_S = 2.0

texts = st.sampled_from(
    ["", "a", "<image>", "<image>\nb", "\ud800", "ü", "\0", "../a.png", "a.png", "data:,x", "data:image/png;base64,"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "from", "value", "bytes", "path", "response", "Rating"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
rows = st.sampled_from([*(row for row, _ in PUBLISHED.values()), *PROMPTS_ONLY.values()])


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a published row with some columns, or places deeper in them, exchanged."""
    row: dict[str, Any] = json.loads(json.dumps(draw(rows)))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = row
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            extra = ["images", "image", "id", "domain", "chosen", "extra"] if place is row else []
            if not keys and not extra:
                break
            key = draw(st.sampled_from([*keys, *extra]))
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                place = inner
                continue
            place[key] = draw(values)
            break
    return row


changes = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=6)


def overwritten(content: bytes, pieces: list[tuple[float, bytes]]) -> bytes:
    """Return ``content`` with pieces written over it, each at a share of its length."""
    changed = bytearray(content)
    for place, piece in pieces:
        start = int(place * len(changed))
        changed[start : start + len(piece)] = piece
    return bytes(changed)


def read(path: Path) -> None:
    """Read a file as prompts and as preferences, and write what is read."""
    for number, reader in enumerate((read_prompts, read_preferences)):
        begun = time.thread_time()
        try:
            found = reader(path)
        except DataFileError as error:
            assert re.match(rf"{re.escape(str(path))}:\d+: .", str(error)), error
        except Invalid as error:  # its first bytes are those of a compressed file
            assert str(error) == f"{path} is {foreign_kind(path.read_bytes()[:LONGEST_START], path)}"
        else:
            if number:
                copy = path.with_name("copy.jsonl")
                write_preferences(found, copy)  # type: ignore[arg-type]
                assert read_preferences(copy) == found
        assert time.thread_time() - begun < _LONGEST_S


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(mutated(), min_size=1, max_size=3), changes)
def test_mutated_rows_and_pictures_are_read_or_named(
    changed: list[dict[str, Any]], torn: list[tuple[float, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture = io.BytesIO()
        Image.new("I;16", (4, 4), 700).save(picture, "PNG")
        (Path(folder) / "a.png").write_bytes(overwritten(picture.getvalue(), torn))
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
        read(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows, changes)
def test_mutated_bytes_are_read_or_named(row: dict[str, Any], torn: list[tuple[float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(overwritten(json.dumps(row).encode(), torn))
        read(path)
