"""An index gives the prompts that a reader of the whole file gives, and refuses what that one refuses."""

from __future__ import annotations

import base64
import json
import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mor_core.datafiles import read_prompts, write_prompts
from mor_core.errors import DataFileError, MorError
from mor_core.prompt_index import PromptSet, open_prompts

from tests.core.published_rows import PROMPTS_ONLY, PUBLISHED, png
from tests.core.test_data_fuzz import changes, mutated, overwritten
from tests.core.test_row_files import saved
from tests.core.test_tar_samples import archive
from tests.core.written_rows import lines

URI = "data:image/png;base64," + base64.b64encode(png("blue")).decode()
ROWS: list[dict[str, Any]] = [
    {"prompt": "Which?", "images": ["a.png"], "domain": "x", "id": "q"},
    {"prompt": "Which <image> is \0 like <image>?", "images": [URI, "a.png"], "id": 7},
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ü?"}], "domain": ""},
    {"prompt": "Which?", "images": [URI, URI]},
]


def same(path: Path, index_dir: Path, columns: str = "") -> PromptSet | None:
    """Check that index and reader agree on a data set; return the index, if both take it."""
    left_out: list[str] = []
    try:
        wanted: Any = read_prompts(path, columns)
    except MorError as error:
        with pytest.raises(MorError) as raised:
            open_prompts(path, columns, index_dir=index_dir)
        assert (type(raised.value), str(raised.value)) == (type(error), str(error))
        try:
            wanted = read_prompts(path, columns, left_out)
        except MorError:
            with pytest.raises(type(error)):
                open_prompts(path, columns, index_dir=index_dir, leave_out=True)
            return None
    prompts = open_prompts(path, columns, index_dir=index_dir, leave_out=True)
    assert list(prompts) == wanted
    assert [(list(one.images), one.id, one.domain) for one in prompts] == [
        (list(one.images), one.id, one.domain) for one in wanted
    ]
    assert list(prompts.ids) == [one.id for one in wanted]
    assert list(prompts.domains) == [one.domain for one in wanted]
    assert [f"{row.place.file}:{row.place.line}: {row.problem}" for row in prompts.problems] == left_out
    return prompts


def written(folder: Path, *rows: Any) -> Path:
    (folder / "a.png").write_bytes(png())
    (folder / "rows.jsonl").write_text(lines(*rows))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("row", [*(row for row, _ in PUBLISHED.values()), *PROMPTS_ONLY.values()])
def test_each_layout_is_read_alike(tmp_path: Path, row: dict[str, Any]) -> None:
    assert same(written(tmp_path, row | {"images": ["a.png"]}), tmp_path / "index") is not None


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "arrow", "tar", "folder", "pattern", "save_to_disk"])
def test_each_source_is_read_alike(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, *ROWS)
    cell = {"bytes": png("red"), "path": "red.png"}
    if form == "json":
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(ROWS))
    elif form == "parquet":
        write_prompts(read_prompts(path), tmp_path / "rows.parquet")
        path = tmp_path / "rows.parquet"
    elif form == "arrow":
        [path] = saved(tmp_path / "arrow", {"prompt": "Which?", "image": cell}).glob("*.arrow")
    elif form == "tar":
        members = {"1.png": png("red"), "1.txt": b"a", "2.0.png": png("blue"), "2.1.png": png("red"), "2.txt": b"b"}
        path = archive(tmp_path / "rows.tar", members)
    elif form == "save_to_disk":
        path = saved(tmp_path / "set", {"prompt": "a", "image": cell}, {"prompt": "b", "image": cell})
    elif form in ("folder", "pattern"):
        path.rename(tmp_path / "train-00000.jsonl")
        (tmp_path / "train-00001.jsonl").write_text(lines({"prompt": "more", "images": ["a.png"]}))
        path = tmp_path if form == "folder" else tmp_path / "train-*.jsonl"
    assert same(path, tmp_path / "index")


def test_a_data_set_of_the_hub_is_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "test.jsonl").write_text(lines({"prompt": "a"}, {"prompt": "b"}))
    monkeypatch.chdir(tmp_path)
    assert same(Path("hub:owner/name:test"), tmp_path / "index")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        ["not a row"],
        [{"prompt": "a", "colour": 1}],
        [{"prompt": "a", "id": "q"}, {"prompt": "b", "id": "q"}, {"prompt": "c"}],
        [{"prompt": "a", "id": "q", "domain": 1}, {"prompt": "b", "id": "q"}, {"prompt": "c", "id": "\ud800"}],
        [{"prompt": "a", "images": ["../b.png"]}, {"prompt": "a"}, {"prompt": "a", "images": ["none.png"]}],
        [{"prompt": "a"}, *([{"prompt": 1}] * 1200)],
    ],
)
def test_bad_rows_are_refused_alike(tmp_path: Path, rows: list[Any]) -> None:
    same(written(tmp_path, *rows), tmp_path / "index")


def test_the_map_of_columns_is_a_part_of_the_index(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": "a", "prompt": "b"})
    first = same(path, tmp_path / "index", "prompt=question,ignore=prompt")
    second = same(path, tmp_path / "index", "ignore=question")
    assert first is not None and second is not None and first[0] != second[0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(mutated(), min_size=1, max_size=4), pieces=changes)
def test_whatever_a_file_holds_is_read_alike(rows: list[dict[str, Any]], pieces: list[tuple[float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), *rows)
        path.write_bytes(overwritten(path.read_bytes(), pieces))
        same(path, Path(folder) / "index")


def test_a_prompt_set_is_a_sequence(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS)
    prompts, wanted = open_prompts(path, index_dir=tmp_path / "index"), read_prompts(path)
    assert prompts[-1] == wanted[-1] and prompts[1:3] == wanted[1:3] and prompts.ids[-1] == wanted[-1].id
    assert prompts.ids[1:3] == [one.id for one in wanted[1:3]]
    for index in (4, -5):
        with pytest.raises(IndexError):
            prompts[index]


def test_threads_and_other_processes_read_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS)
    prompts, wanted = open_prompts(path, index_dir=tmp_path / "index"), read_prompts(path)
    sent: PromptSet = pickle.loads(pickle.dumps(prompts))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(prompts.__getitem__, [0, 1, 2, 3] * 50)) == wanted * 50
    assert list(sent) == wanted


@pytest.mark.parametrize("change", ["exchanged", "deleted", "linked elsewhere"])
def test_a_picture_that_changed_costs_its_rows_alone(tmp_path: Path, change: str) -> None:
    path = written(tmp_path, *ROWS)
    prompts, wanted = open_prompts(path, index_dir=tmp_path / "index"), read_prompts(path)
    picture = tmp_path / "a.png"
    picture.unlink()
    if change == "exchanged":
        picture.write_bytes(png("green"))
    elif change == "linked elsewhere":
        picture.symlink_to("/etc/passwd")
    for row in (0, 1):
        with pytest.raises(DataFileError, match=rf"rows\.jsonl:{row + 1}: images: .*a\.png.* \(row '[q7]'\)"):
            prompts[row]
    assert prompts[2:] == wanted[2:]
    assert list(prompts.ids) == [one.id for one in wanted]
    picture.unlink(missing_ok=True)
    picture.write_bytes(png())
    assert list(prompts) == wanted


def test_an_archive_that_changed_costs_its_rows(tmp_path: Path) -> None:
    path = archive(tmp_path / "rows.tar", {"1.png": png("red"), "1.txt": b"a", "2.txt": b"b"})
    prompts = open_prompts(path, index_dir=tmp_path / "index")
    text = prompts[1]
    content = path.read_bytes()
    path.write_bytes(content.replace(png("red"), bytes(len(png("red")))))
    with pytest.raises(DataFileError, match=r"rows\.tar:1: images: rows\.tar is not what was indexed; put the former"):
        prompts[0]
    path.unlink()
    with pytest.raises(DataFileError, match=r"rows\.tar:1: rows\.tar cannot be read .*; put it back"):
        prompts[0]
    assert prompts[1] == text
