"""The files that hold a model's weights are those of its index, or ``model.safetensors``, and no others."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from mor_core.errors import Invalid
from mor_core.weight_files import check_stored_weights, check_unambiguous, weight_files


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
        (STRAYS[:1], None, r"has no \*.safetensors; save it"),
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


def tensors(**types: str) -> bytes:
    """Return a file of safetensors with tensors of one byte."""
    entries = {
        name: {"dtype": kind, "shape": [1], "data_offsets": [place, place + 1]}
        for place, (name, kind) in enumerate(types.items())
    }
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(len(types))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pytorch_model.bin", b"", r"has pytorch_model\.bin instead of model\.safetensors: pickled weights"),
        ("model-Q4_K_M.gguf", b"", r"weights of llama\.cpp"),
        ("consolidated.safetensors", b"", "a format of their own"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", r"a pointer of Git LFS.*git lfs pull"),
        ("model.safetensors", b"", "not a safetensors file"),
        ("model.safetensors", tensors(weight="F32")[:-1], "the file is truncated"),
        *(("model.safetensors", tensors(weight=kind), f"'weight' as {kind}: quantised") for kind in ("I8", "F8_E4M3")),
        ("model.safetensors", tensors(qweight="I32"), "quantised weights cannot be trained"),
    ],
)
def test_weights_that_cannot_be_trained_are_refused_by_their_headers(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Invalid, match=message):
        check_stored_weights(str(tmp_path))


def test_an_adapter_in_place_of_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for check in (weight_files, lambda folder: check_stored_weights(str(folder))):
        with pytest.raises(Invalid, match=r"is an adapter .* merge it into its base model"):
            check(tmp_path)


def test_an_index_names_tensors_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, index={"weight_map": {"a.weight": "one.safetensors"}})
    (tmp_path / "one.safetensors").write_bytes(tensors(**{"b.weight": "F32"}))
    with pytest.raises(Invalid, match=r"names tensor 'a\.weight', which is not in it"):
        check_stored_weights(str(tmp_path))


def test_half_precision_buffers_and_folders_without_weights_are_taken(tmp_path: Path) -> None:
    check_stored_weights(str(write(tmp_path)))
    types = {"a.weight": "BF16", "b.weight": "F16", "position_ids": "I64"}
    (tmp_path / "model.safetensors").write_bytes(tensors(**types))
    check_stored_weights(str(tmp_path))
    check_stored_weights("owner/name")
