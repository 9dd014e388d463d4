"""Data files are read whole, or refused with the line and the cure."""

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
    assert (row.chosen, row.rejected, row.prompt.id) == ("red", "blue", "line-1")
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
        ("{not json", r"rows.jsonl:2: not JSON .* write one JSON object per line"),
        ("[1]", r"rows.jsonl:2: got a JSON list; write one JSON object"),
        (PREFERENCE | {"colour": 1}, r":2: unknown column 'colour'; the columns are chosen, chosen-rating, "),
        ({"prompt": "a", "chosen": "b"}, r":2: column 'rejected' is missing"),
        (PREFERENCE | {"images": ["gone.png"]}, r":2: images: no file 'gone.png' in the data file's folder; put"),
        (PREFERENCE | {"images": ["corrupt.png"]}, r":2: images: corrupt.png: not a readable image"),
        (PREFERENCE | {"images": []}, r":2: prompt: more image parts than 'images'"),
        (PREFERENCE | {"images": ["a.png", "a.png"]}, r":2: images: 1 more than the prompt's image parts"),
        (PREFERENCE | {"chosen": "blue"}, r":2: chosen and rejected are the same text; drop the row"),
        (PREFERENCE | {"chosen": ""}, r":2: chosen: not a response; give a non-empty string"),
        (PREFERENCE | {"prompt": []}, r":2: prompt: not a conversation; give a string or a non-empty list"),
        (PREFERENCE | {"prompt": [{"role": "robot", "content": "a"}], "images": []}, r":2: prompt: role: Input should"),
        (PREFERENCE | {"id": "first"}, r":2: id 'first' is also used in line 1"),
        (PREFERENCE | {"images": ["data:image/png;base64,???"]}, r":2: images: a data URI is not base64"),
        (PREFERENCE | {"images": ["data:image/png;base64,é"]}, r":2: images: a data URI is not base64"),
        (PREFERENCE | {"images": ["a\0.png"]}, r":2: images: 'a\\x00.png' cannot be read \(embedded null byte\)"),
        (
            PREFERENCE | {"images": ["a" * 300]},
            r":2: images: a name of 300 characters cannot be read \(File name too long\)",
        ),
        (PREFERENCE | {"images": [{"bytes": 10**12}]}, r":2: images: got \{bytes: int\}; give Parquet"),
        (PREFERENCE | {"images": [{"bytes": "a.png"}]}, r":2: images: got \{bytes: str\}; give Parquet"),
        (PREFERENCE | {"images": [{"bytes": [137, 80]}]}, r":2: images: got \{bytes: list\}; give Parquet"),
        (PREFERENCE | {"images": [{"path": 1}]}, r":2: images: got \{path: int\}; give Parquet"),
        (PREFERENCE | {"images": [{}]}, r":2: images: got \{\}; give Parquet"),
        (PREFERENCE | {"images": [7]}, r":2: images: got int; give a file name or a data URI"),
        (PREFERENCE | {"domain": 7}, r":2: domain: got int; give a string"),
        (PREFERENCE | {"prompt": [{"role": "user", "content": 7}]}, r":2: prompt: got message content of type int"),
        (PREFERENCE | {"prompt": [{"role": "user", "content": ["a"]}]}, r":2: prompt: unknown message part a"),
    ],
)
def test_a_bad_line_is_named_with_its_cure(tmp_path: Path, row: Any, place_and_cure: str) -> None:
    (tmp_path / "corrupt.png").write_bytes(png()[:40])
    with pytest.raises(DataFileError, match=place_and_cure):
        read_preferences(write(tmp_path, PREFERENCE | {"id": "first"}, row))


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "{absolute}", "link.png", "up/secret.png"])
@pytest.mark.parametrize("there", [True, False])
def test_a_data_file_reads_nothing_outside_its_folder(tmp_path: Path, name: str, there: bool) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    if there:
        secret.write_bytes(png())
    (folder / "link.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    cell = name.format(absolute=secret)
    for row in (PREFERENCE | {"images": [cell]}, PREFERENCE | {"images": [{"bytes": None, "path": cell}]}):
        with pytest.raises(DataFileError, match=rf":2: images: '{cell}' is not below the data file's folder; put it"):
            read_preferences(write(folder, PREFERENCE, row))


def test_a_folder_that_is_a_link_and_names_inside_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "inner.png").symlink_to("a.png")
    names = ["a.png", "sub/../a.png", "inner.png", str(tmp_path / "real" / "a.png")]
    path = write(tmp_path / "data", *({"prompt": "What is it?", "images": [name]} for name in names))
    assert [list(row.images.values()) for row in read_prompts(path)] == [[png()]] * 4


def test_a_picture_that_several_rows_show_is_held_once(tmp_path: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    rows = read_prompts(write(tmp_path, *({"prompt": "Which?", "images": [name]} for name in ("a.png", uri, "a.png"))))
    [first], *others = (list(row.images.values()) for row in rows)
    assert all(content is first for [content] in others)


def test_further_bad_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r":1: .*\(2 more invalid lines: 2, 4\)"):
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
