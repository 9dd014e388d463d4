"""Data files are read whole or refused with the line and the cure."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from mor_core.datafiles import read_preferences, read_prompts
from mor_core.errors import DataFileError, Invalid
from mor_core.wire import ImagePart, TextPart
from PIL import Image


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, *rows: Any) -> Path:
    (folder / "a.png").write_bytes(png())
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
PREFERENCE = {
    "prompt": MESSAGES,
    "images": ["a.png"],
    "chosen": [{"role": "assistant", "content": "red"}],
    "rejected": "blue",
}


def test_trl_rows_are_read(tmp_path: Path) -> None:
    [row] = read_preferences(write(tmp_path, PREFERENCE))
    assert (row.chosen, row.rejected, row.prompt.id) == ("red", "blue", "1")
    [message] = row.prompt.messages
    assert isinstance(message.content, tuple)
    image, text = message.content
    assert isinstance(image, ImagePart)
    assert row.prompt.images[image.sha256] == png()
    assert text == TextPart(text="What is it?")


def test_a_string_prompt_shows_its_images_first(tmp_path: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png("blue")).decode()
    [row] = read_prompts(write(tmp_path, {"prompt": "Which?", "images": ["a.png", uri], "domain": "x", "id": "q"}))
    kinds = [part.type for part in row.messages[0].content if not isinstance(part, str)]
    assert kinds == ["image_url", "image_url", "text"]
    assert (row.id, row.domain, len(row.images)) == ("q", "x", 2)


@pytest.mark.parametrize(
    ("row", "place_and_cure"),
    [
        ("{not json", r"rows.jsonl:2: not JSON .* write one JSON object a line"),
        ("[1]", r"rows.jsonl:2: a JSON list; write one JSON object"),
        (PREFERENCE | {"colour": 1}, r":2: unknown column 'colour'; the columns are chosen, domain"),
        ({"prompt": "a", "chosen": "b"}, r":2: column 'rejected' is missing"),
        (PREFERENCE | {"images": ["gone.png"]}, r":2: images: no file .*gone.png; paths are relative"),
        (PREFERENCE | {"images": ["corrupt.png"]}, r":2: images: corrupt.png: not a readable image"),
        (PREFERENCE | {"images": []}, r":2: prompt: more image parts than 'images'"),
        (PREFERENCE | {"images": ["a.png", "a.png"]}, r":2: images: 1 more than the prompt's image parts"),
        (PREFERENCE | {"chosen": "blue"}, r":2: chosen and rejected are the same text; drop the row"),
        (PREFERENCE | {"chosen": ""}, r":2: chosen: a non-empty string"),
        (PREFERENCE | {"prompt": []}, r":2: prompt: a string or a non-empty list"),
        (PREFERENCE | {"prompt": [{"role": "robot", "content": "a"}], "images": []}, r":2: prompt: role: Input should"),
        (PREFERENCE | {"id": "first"}, r":2: id 'first' stands in line 1 too"),
        (PREFERENCE | {"images": ["data:image/png;base64,???"]}, r":2: images: a data URI that is not base64"),
    ],
)
def test_a_bad_line_is_named_with_its_cure(tmp_path: Path, row: Any, place_and_cure: str) -> None:
    (tmp_path / "corrupt.png").write_bytes(png()[:40])
    with pytest.raises(DataFileError, match=place_and_cure):
        read_preferences(write(tmp_path, PREFERENCE | {"id": "first"}, row))


def test_further_bad_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r":1: .*\(2 more bad lines: 2, 4\)"):
        read_prompts(write(tmp_path, {"prompt": 1}, {"prompt": []}, {"prompt": "good"}, "{"))


def test_an_empty_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="has no rows"):
        read_prompts(write(tmp_path))
    with pytest.raises(Invalid, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")


def test_parquet_with_embedded_images_reads_like_jsonl(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = PREFERENCE | {"images": [{"bytes": png(), "path": None}], "prompt": "What is it?", "chosen": "red"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    [found] = read_preferences(tmp_path / "rows.parquet")
    [expected] = read_preferences(write(tmp_path, PREFERENCE))
    assert found == expected
