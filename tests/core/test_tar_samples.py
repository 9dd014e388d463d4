"""Samples of a WebDataset archive are rows; a torn or broken one is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from mor_core.datafiles import read_prompts
from mor_core.errors import DataFileError, Invalid
from mor_core.images import MAX_BYTES

from tests.core.published_rows import png


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_pictures_of_a_sample_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    colours = [f"#{number:02x}0000" for number in range(12)]
    members = {f"1.{number}.png": png(colour) for number, colour in enumerate(colours)}
    [row] = read_prompts(archive(tmp_path / "rows.tar", {"._1.0.png": b"", **members, "1.txt": b"which?"}))
    assert list(row.images.values()) == [png(colour) for colour in colours]


def test_an_archive_whose_samples_are_torn_apart_is_refused(tmp_path: Path) -> None:
    members = {"1.jpg": png("red"), "2.jpg": png("red"), "1.txt": b"one?", "2.txt": b"two?"}
    with pytest.raises(Invalid, match=r"rows\.tar: the members of '1' are apart; sort the archive by name$"):
        read_prompts(archive(tmp_path / "rows.tar", members))


def test_a_webdataset_archive_is_read(tmp_path: Path) -> None:
    members = {
        "a/0001.jpg": png("red"),
        "a/0001.json": json.dumps({"prompt": "<image> one?", "image": "0001.jpg"}).encode(),
        "a/0002.0.png": png("red"),
        "a/0002.1.png": png("blue"),
        "a/0002.txt": b"two?",
        "b/0002.txt": b"three?",
    }
    rows = read_prompts(archive(tmp_path / "rows.tar", members))
    assert [(row.id, row.messages[0].text.strip(), list(row.images.values())) for row in rows] == [
        ("a/0001", "one?", [png("red")]),
        ("a/0002", "two?", [png("red"), png("blue")]),
        ("b/0002", "three?", []),
    ]


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"1.txt": b"a", "1.jpg": png("red"), "1.JPG": png("blue")}, r"rows\.tar:1: 1\.JPG is twice in its sample"),
        ({"1.txt": b"a", "1.json": b'{"prompt": "b"}'}, r"rows\.tar:1: 1: both 1\.txt and 1\.json give the prompt"),
        ({"1.txt": b"a", "2.txt": b"\xff"}, r"rows\.tar:2: 2\.txt is not UTF-8"),
        ({"1.json": b"[]"}, r"rows\.tar:1: got a JSON list"),
        ({"1.txt": b"a", "1.cls": b"3"}, r"rows\.tar:1: unknown member 1\.cls; the columns belong into 1\.json"),
        ({"1.txt": b"a", "1.png": bytes(MAX_BYTES + 1)}, r"rows\.tar:1: 1\.png: \d+ bytes, of at most"),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, members: dict[str, bytes], problem: str) -> None:
    with pytest.raises(DataFileError, match=problem):
        read_prompts(archive(tmp_path / "rows.tar", members))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_picture_that_is_a_link_is_not_left_out_in_silence(tmp_path: Path, kind: bytes) -> None:
    """tar writes files that share their content on disk so."""
    path = archive(tmp_path / "rows.tar", {"1.png": png("red"), "1.txt": b"one?", "2.txt": b"two?"})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = kind, "1.png"
        tar.addfile(link)
    with pytest.raises(DataFileError, match=r"rows\.tar:2: 2\.png is a link; write the archive with its files"):
        read_prompts(path)


def test_texts_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    members = {"1.txt": "ü".encode("utf-8-sig"), "2.json": '{"prompt": "ü"}'.encode("utf-8-sig")}
    assert [row.messages[0].text for row in read_prompts(archive(tmp_path / "rows.tar", members))] == ["ü", "ü"]


def test_names_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("größe.txt"))
    with pytest.raises(Invalid, match=r"rows\.tar: not a readable tar \(UnicodeDecodeError"):
        read_prompts(path)
