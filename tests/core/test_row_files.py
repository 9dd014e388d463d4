"""Rows come from files, folders, shards, archives and a hub's cache; what cannot be read is named with its line."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given as example
from hypothesis import strategies as st
from mor_core.datafiles import read_preferences, read_prompts, scan_prompts, write_preferences, write_prompts
from mor_core.errors import Conflict, DataFileError, Invalid, MorError
from mor_core.prompt_index import open_prompts

from tests.core.published_rows import png
from tests.core.written_rows import lines, texts

LONG = "x" * 1_000_000


@pytest.mark.parametrize(("given", "found"), [(0, "0"), (7, "7"), ("a", "a"), (None, "line-1"), ("", "line-1")])
def test_an_id_is_a_string_or_an_integer(tmp_path: Path, given: Any, found: str) -> None:
    (tmp_path / "rows.jsonl").write_text(lines({"prompt": "a", "id": given}))
    assert [row.id for row in read_prompts(tmp_path / "rows.jsonl")] == [found]


@example(ids=st.lists(st.none() | st.integers(0, 5) | st.sampled_from(["", "a"]), min_size=1, max_size=5, unique=True))
def test_a_row_without_id_collides_with_no_number(ids: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text(lines(*({"prompt": "a"} | ({} if one is None else {"id": one}) for one in ids)))
        assert len({row.id for row in read_prompts(path)}) == len(ids)


@pytest.mark.parametrize("given", [True, 1.5, ["a"], {}])
def test_another_id_is_an_error(tmp_path: Path, given: Any) -> None:
    (tmp_path / "rows.jsonl").write_text(lines({"prompt": "a", "id": given}))
    with pytest.raises(DataFileError, match=r":1: id: got \w+; give a string or an integer"):
        read_prompts(tmp_path / "rows.jsonl")


def test_zero_and_its_text_are_one_id(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines({"prompt": "a", "id": 0}, {"prompt": "b", "id": "0"}))
    with pytest.raises(DataFileError, match=":2: id '0' is also used in line 1"):
        read_prompts(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"rows{suffix}").write_text(lines({"prompt": "a"}, {"prompt": "ü"}), encoding="utf-8-sig")
    assert texts(tmp_path / f"rows{suffix}") == ["a", "ü"]


def test_files_with_byte_order_marks_may_be_put_together(tmp_path: Path) -> None:
    part = lines({"prompt": "ü"}).encode("utf-8-sig")
    (tmp_path / "rows.jsonl").write_bytes(part + part)
    assert texts(tmp_path / "rows.jsonl") == ["ü", "ü"]
    (tmp_path / "rows.jsonl").write_bytes(part + '{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(DataFileError, match=r"rows\.jsonl:2: not UTF-8 \(byte 13 is 0xe9\)"):
        read_prompts(tmp_path / "rows.jsonl")


def test_a_data_file_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Names become ids, and an index stores them as texts."""
    for number in range(2):
        (tmp_path / os.fsdecode(b"Pr\xe4ferenzen-%d.jsonl" % number)).write_text(lines({"prompt": "a"}))
    with pytest.raises(Invalid, match=r"Pr\\udce4ferenzen-0\.jsonl: the name is not UTF-8; rename the file"):
        read_prompts(tmp_path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "café"}'.encode("latin-1"), r"not UTF-8 \(byte 16 is 0xe9\); save the file as UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16"), r"not UTF-8 \(byte 1 is 0xff\)"),
        (b'{"prompt": "\\ud800"}', "half a character"),
        (b'{"prompt": [{"role": "user", "content": [{"type": "text", "text": "\\udfff b"}]}]}', "half a character"),
        (b'{"prompt": "a", "\\ud800": 1}', "half a character"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
        (b'{"prompt": "a", "chosen": "b", "chosen": "c"}', "'chosen' is given twice"),
        (b'{"prompt": [{"role": "user", "role": "tool"}]}', "'role' is given twice"),
        (b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}", "nested over 64 levels"),
        (b'{"prompt": "a", "id": ' + b"1" * 10_000 + b"}", "a number is too long"),
    ],
)
def test_a_line_that_is_no_text_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "a"}\n' + line.replace(b"\n", b"") + b"\n")
    with pytest.raises(DataFileError, match=rf"rows\.jsonl:2: .*{problem}"):
        read_prompts(tmp_path / "rows.jsonl")


def test_a_line_that_would_fill_memory_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines({"prompt": "a"}))
    with path.open("r+b") as opened:
        opened.seek(200 << 20, os.SEEK_END)  # zeros that take no room on the disk
        opened.write(b"\n" + lines({"prompt": "b"}).encode())
    rows = [(row.place.line, row.problem) for row in scan_prompts(path)]
    assert rows == [(1, None), (2, "over 128 MiB; write one JSON object per line"), (3, None)]


def test_whole_characters_outside_the_basic_plane_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "\\ud83d\\ude42"}\n')
    assert texts(tmp_path / "rows.jsonl") == ["🙂"]


def test_a_json_array_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}, 7], indent=2))
    with pytest.raises(DataFileError, match=r"rows\.json:3: got a JSON int"):
        read_prompts(tmp_path / "rows.json")
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=2))
    assert texts(tmp_path / "rows.json") == ["a", "b"]


def test_shards_are_read_in_order_and_errors_name_the_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(2):
        (data / f"train-0000{number}-of-00002.jsonl").write_text(
            lines({"prompt": f"{number}a"}, {"prompt": f"{number}b"})
        )
    for path in (tmp_path, data, data / "train-*.jsonl", data / "*"):
        assert texts(path) == ["0a", "0b", "1a", "1b"]
        assert read_prompts(path)[0].id == "train-00000-of-00002.jsonl:1"
    (data / "train-00001-of-00002.jsonl").write_text(lines({"prompt": "1a"}, {"prompt": 1}))
    with pytest.raises(DataFileError, match=r"train-00001-of-00002\.jsonl:2: prompt: not a conversation"):
        read_prompts(tmp_path)
    (data / "test-00000-of-00001.jsonl").write_text(lines({"prompt": "c"}))
    with pytest.raises(Invalid, match=r"holds the sets test, train; name one set, as '.*/data/train\*\.jsonl'"):
        read_prompts(tmp_path)
    assert texts(data / "test-*") == ["c"]


def test_descriptions_beside_the_shards_of_a_data_set_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.jsonl").write_text(lines({"prompt": "a"}))
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    (tmp_path / "._rows.jsonl").write_bytes(b"\0")
    assert texts(tmp_path) == ["a"]


def test_a_folder_of_folders_names_them(tmp_path: Path) -> None:
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
    with pytest.raises(Invalid, match=r"holds no data file; .*; or give one of its folders test, train"):
        read_prompts(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.jsonl.gz", gzip.compress(b'{"prompt": "a"}', mtime=0), "is compressed by gzip; unpack it"),
        ("rows.tar.gz", gzip.compress(b"x", mtime=0), "is compressed by gzip; unpack it"),
        ("rows.zip", b"PK\x03\x04", "is a zip archive; unpack it"),
        ("rows.csv", b"prompt\na\n", "save it as JSON lines or Parquet, as by: python -c"),
        ("rows.jsonl", b"prompt,chosen\na,b\n", "not JSON but a table in text \\(CSV\\); save it as JSON lines"),
        ("rows.jsonl", '{"prompt": "a"}'.encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        ("rows.jsonl", '{"prompt": "a"}'.encode("utf-16-le"), "zero bytes, as UTF-16 has"),
        ("rows.lz4", b"\x04\x22\x4d\x18", "is compressed by lz4; unpack it"),
        ("rows.jsonl", b"PAR1", r"is read by the name \*\.parquet; rename it"),
        ("rows.json", b"ARROW1", r"is read by the name \*\.arrow; rename it"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\n", "pointer of a file in Git LFS; get"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Invalid, match=problem):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (b'{"prompt": "b" "id": 1}', "not JSON"),
        (b'{"prompt": "\xe9"}', "not UTF-8 \\(byte 14 is 0xe9\\)"),
    ],
)
def test_an_error_in_a_json_array_names_its_line(tmp_path: Path, second: bytes, problem: str) -> None:
    (tmp_path / "rows.json").write_bytes(b'[\n{"prompt": "a"},\n ' + second + b"\n]")
    with pytest.raises(DataFileError, match=rf"rows\.json:3: {problem}"):
        read_prompts(tmp_path / "rows.json")


def test_a_bad_row_is_named_by_its_id(tmp_path: Path) -> None:
    (tmp_path / "lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for picture, problem in (
        ("lfs.png", "lfs.png is the pointer of a file in Git LFS"),
        ("https://example.org/a.png", "is an address; download it"),
        ("a" * 200, "no file a name of 200 characters"),
    ):
        (tmp_path / "rows.jsonl").write_text(lines({"id": "q-7", "prompt": "a", "images": picture}))
        with pytest.raises(DataFileError, match=rf"rows\.jsonl:1: images: .*{problem}.*\(row 'q-7'\)"):
            read_prompts(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "row", [{LONG: 1}, {"prompt": [{"role": "user", "content": [{"type": LONG}]}]}, {"id": LONG}, {"domain": LONG}]
)
def test_the_problem_of_a_row_is_short_whatever_the_row_holds(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "rows.jsonl").write_text(lines({"prompt": "a", "id": 1}) + lines({"prompt": "a", **row}))
    with pytest.raises(DataFileError) as refused:
        read_prompts(tmp_path / "rows.jsonl")
    assert len(str(refused.value)) < 1000


def test_a_folder_or_pattern_without_data_is_named(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path, "holds no data file"),
        (tmp_path / "*.jsonl", "holds no file"),
        (tmp_path / "a", "no such file"),
    ):
        with pytest.raises(Invalid, match=problem):
            read_prompts(path)


def test_a_suffix_in_capitals_is_known(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "ROWS.JSON"):
        (tmp_path / "ROWS.JSON").write_text('[{"prompt": "a"}]')
        assert len(read_prompts(place)) == 1


def test_a_compressed_shard_of_a_folder_is_not_left_out_in_silence(tmp_path: Path) -> None:
    (tmp_path / "rows-1.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(Invalid, match=r"rows-1\.jsonl\.gz is compressed; unpack it"):
        read_prompts(tmp_path)
    (tmp_path / "rows-0.jsonl").write_text(lines({"prompt": "a"}))
    with pytest.raises(Invalid, match=r"rows-1\.jsonl\.gz is compressed; unpack it"):
        read_prompts(tmp_path)
    (tmp_path / "rows-1.jsonl").write_text(lines({"prompt": "b"}))  # unpacked beside it
    assert len(read_prompts(tmp_path)) == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.tar", "."])
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, name: str) -> None:
    """The memory of a process is a file that exists, and of which the first byte cannot be read, not even by root."""
    (tmp_path / ("rows.json" if name == "." else name)).symlink_to("/proc/self/mem")
    for read in (read_prompts, lambda path: open_prompts(path, index_dir=tmp_path / "index")):
        with pytest.raises(Invalid, match=r"cannot be read \(OSError: .*\); check its files, their permissions and"):
            read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".tar"])
def test_a_torn_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"neither of them, really" * 40)
    with pytest.raises(MorError, match=r"rows\.\w+: not a readable \w+ .*; write the file again"):
        read_prompts(path)


def saved(folder: Path, *rows: dict[str, Any]) -> Path:
    """Write a folder as ``save_to_disk`` of the library ``datasets`` does: Arrow streams and their list."""
    pyarrow, ipc = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.ipc")
    folder.mkdir(parents=True)
    names = [f"data-0000{place}-of-0000{len(rows)}.arrow" for place in range(len(rows))]
    for name, row in zip(names, rows, strict=True):
        table = pyarrow.Table.from_pylist([row])
        with ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    train = saved(tmp_path / "set" / "train", {"prompt": "a", "image": {"bytes": png(), "path": None}}, {"prompt": "b"})
    assert texts(train) == ["a", "b"]
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert texts(tmp_path / "set") == ["a", "b"]
    saved(tmp_path / "set" / "test", {"prompt": "c"})
    with pytest.raises(Invalid, match="holds the splits test, train; give one of them"):
        read_prompts(tmp_path / "set")
    (train / "state.json").write_text('{"_data_files": [{"filename": "../test/data-00000-of-00001.arrow"}]}')
    with pytest.raises(Invalid, match=r"there is no file '\.\./test/data"):
        read_prompts(train)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_converted_reads_the_same(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.png").write_bytes(png())
    rows = [
        {"id": 0, "question": "<image> Which?", "chosen": "a", "rejected": "b ü", "image": "a.png"},
        {"id": 1, "question": "Plain?", "chosen": "a", "rejected": "b", "domain": "x"},
    ]
    (tmp_path / "rows.jsonl").write_text(lines(*rows))
    preferences, prompts = read_preferences(tmp_path / "rows.jsonl"), read_prompts(tmp_path / "rows.jsonl")
    write_preferences(preferences, tmp_path / f"pairs{suffix}")
    write_prompts(prompts, tmp_path / f"prompts{suffix}")
    assert read_preferences(tmp_path / f"pairs{suffix}") == preferences
    assert read_prompts(tmp_path / f"prompts{suffix}") == prompts
    with pytest.raises(Conflict, match="exists; choose another name"):
        write_prompts(prompts, tmp_path / f"prompts{suffix}")
    with pytest.raises(Invalid, match=r"write to a \.jsonl or \.parquet file"):
        write_prompts(prompts, tmp_path / "prompts.csv")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"train-1.jsonl": "row", "train-2.json": "array"}, "holds .jsonl and .json files"),
        ({"train-1.jsonl": "row", "train-2.json": "row"}, "holds .jsonl and .json files"),
        ({"train-1.jsonl": "row", "train-2.csv": "prompt"}, "train-2.csv is a table in text"),
        ({"train.jsonl": "row", "data/train.jsonl": "row"}, "holds train.jsonl and data/train.jsonl; give one of them"),
        ({"rows.json": "array", "data/train.jsonl": "row"}, "holds .json and .jsonl files"),
        ({"stats.json": "object", "data/train.jsonl": "row"}, None),
        ({"train.ndjson": "row", "annotators.csv": "name", "stats.json": "object"}, None),
    ],
)
def test_nothing_of_a_folder_is_left_out_in_silence(tmp_path: Path, files: dict[str, str], told: str | None) -> None:
    row = {"prompt": "a"}
    contents = {"row": json.dumps(row), "array": json.dumps([row]), "object": json.dumps({"rows": 1}, indent=1)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(contents.get(content, content))
    if told is None:
        assert texts(tmp_path) == ["a"]
        return
    with pytest.raises(Invalid, match=told):
        read_prompts(tmp_path)


def test_rows_inside_an_object_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"data": [{"prompt": "a"}]}, indent=1))
    with pytest.raises(DataFileError, match=r":1: one JSON object with 'data'; write an array of rows"):
        read_prompts(tmp_path / "rows.json")


def test_a_folder_with_data_files_of_two_kinds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "statistics.json").write_text("{}")
    assert len(read_prompts(tmp_path)) == 1, "JSON may describe the data"
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(Invalid, match=r"holds \.\w+ and \.\w+ files; give one kind, as '.*\*\.\w+'"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_that_gives_a_column_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    """pyarrow keeps the last of them, as JSON readers do."""
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / f"rows.{suffix}"
    table = pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"])
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_stream(str(file), table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(Invalid, match=r"the column 'prompt' is given twice; keep one of the two"):
        read_prompts(file)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_column_that_python_cannot_hold_is_named(tmp_path: Path, suffix: str) -> None:
    """Dates after the year 9999 stand in many tables for one that is unknown."""
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / f"rows.{suffix}"
    table = pyarrow.table({"prompt": ["a"], "until": pyarrow.array([2**60], pyarrow.timestamp("us"))})
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_stream(str(file), table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(Invalid, match=r"the column 'until' has values that cannot be read .*write them as text"):
        read_prompts(file, "ignore=until")
