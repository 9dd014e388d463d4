"""The files that hold a model's weights are those of its index, or ``model.safetensors``, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mor_core.errors import Invalid
from mor_core.weight_files import check_unambiguous, weight_files


def write(folder: Path, *files: str, index: object = None) -> Path:
    for name in ("config.json", *files):
        (folder / name).write_text("{}")
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


SHARDS = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
STRAYS = ("value_head.safetensors", "consolidated.safetensors", "adapter_model.safetensors")


def test_an_index_decides(tmp_path: Path) -> None:
    write(tmp_path, "one.safetensors", "two.safetensors", *STRAYS, index=SHARDS)
    assert weight_files(tmp_path) == {
        tmp_path / "one.safetensors": frozenset("ab"),
        tmp_path / "two.safetensors": frozenset("c"),
    }


def test_without_one_it_is_the_single_file(tmp_path: Path) -> None:
    assert weight_files(write(tmp_path, "model.safetensors", *STRAYS)) == {tmp_path / "model.safetensors": None}


@pytest.mark.parametrize(
    ("files", "index", "message"),
    [
        (STRAYS, None, r"has no \*.safetensors; save it"),
        (("one.safetensors",), SHARDS, "names two.safetensors, which is not there"),
        (("model.safetensors", "one.safetensors", "two.safetensors"), SHARDS, "delete the one that is not the model"),
        (("model.safetensors", "adapter_config.json"), None, "merge the adapter"),
        ((), {"weight_map": {"a": "../one.safetensors"}}, "not an index of weights"),
        ((), {"weight_map": {}}, "not an index of weights"),
        ((), {"weight_map": {"a": 3}}, "not an index of weights"),
        ((), [], "not an index of weights"),
    ],
)
def test_what_loaders_would_disagree_about_is_refused(
    tmp_path: Path, files: tuple[str, ...], index: object, message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        weight_files(write(tmp_path, *files, index=index))


def test_a_published_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    check_unambiguous(tmp_path)
