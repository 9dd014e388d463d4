"""Rows of the hub: its cache, whose files are links to blobs, and its library."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mor_core.datafiles import read_prompts
from mor_core.errors import DataFileError, Invalid

from tests.core.published_rows import png
from tests.core.written_rows import lines, texts


def hub_snapshot(folder: Path) -> Path:
    """Lay out a data set as the cache of the hub's client does: files are links to blobs."""
    repository = folder / "datasets--owner--name"
    snapshot = repository / "snapshots" / "0123abcd"
    (snapshot / "images").mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name, content in (
        ("rows.jsonl", lines({"prompt": "a", "images": ["images/1.png"]}).encode()),
        ("images/1.png", png()),
    ):
        blob = repository / "blobs" / name.replace("/", "-")
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


def test_links_of_a_hub_snapshot_into_its_blobs_are_followed(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path)
    [row] = read_prompts(snapshot / "rows.jsonl")
    assert list(row.images.values()) == [png()]
    assert texts(snapshot) == ["a"]


def test_a_link_elsewhere_is_not_followed_from_a_hub_snapshot(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path)
    (tmp_path / "secret.png").write_bytes(png())
    (snapshot / "images" / "2.png").symlink_to(tmp_path / "secret.png")
    names = ("images/2.png", "../../blobs/images-1.png", str(snapshot.parents[1] / "blobs" / "images-1.png"))
    for name in names:
        (snapshot / "more.jsonl").write_text(lines({"prompt": "a", "images": [name]}))
        with pytest.raises(DataFileError, match="is not below the data file's folder"):
            read_prompts(snapshot / "more.jsonl")


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_links_into_the_given_cache_are_followed(
    tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    blob = hub_snapshot(tmp_path / "hub").parents[1] / "blobs" / "images-1.png"
    data = tmp_path / "data"
    data.mkdir()
    (data / "1.png").symlink_to(blob)
    (data / "rows.jsonl").write_text(lines({"prompt": "a", "images": ["1.png"]}))
    with pytest.raises(DataFileError, match="is not below the data file's folder"):
        read_prompts(data / "rows.jsonl")
    monkeypatch.setenv(variable, str(tmp_path / "hub" if variable == "HF_HUB_CACHE" else tmp_path))
    assert texts(data / "rows.jsonl") == ["a"]
    (data / "rows.jsonl").write_text(lines({"prompt": "a", "images": [str(blob)]}))
    with pytest.raises(DataFileError, match="is not below the data file's folder"):
        read_prompts(data / "rows.jsonl")


def test_a_data_set_of_the_hub_is_read_through_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(lines({"prompt": "a"}, {"prompt": "b"}))
    monkeypatch.chdir(tmp_path)  # the library takes a local folder of the data set's name before the hub's
    assert texts(Path("hub:owner/name:test")) == ["a", "b"]
    with pytest.raises(Invalid, match=r"hub:owner/name: the data set cannot be loaded .*; check name and split"):
        read_prompts(Path("hub:owner/name"))


def test_what_the_library_of_the_hub_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = {"prompt": datasets.Value("string"), "image": datasets.Image(), "idx": datasets.Value("int64")}
    row = {"prompt": "<image> Which?", "image": {"bytes": png(), "path": "red.png"}, "idx": 0}
    table = datasets.Dataset.from_list([row], features=datasets.Features(features))
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    for path in (tmp_path / "saved", tmp_path):
        [prompt] = read_prompts(path, "id=idx")
        assert (prompt.id, list(prompt.images.values())) == ("0", [png()])


@pytest.mark.parametrize("name", ["hub:name", "hub:a/b:c:d:e", "hub:"])
def test_a_name_on_the_hub_is_checked(name: str) -> None:
    with pytest.raises(Invalid, match="write hub:OWNER/NAME"):
        read_prompts(Path(name))
