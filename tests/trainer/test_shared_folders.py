"""A file in the folder of runs that does not fit harms only itself, and no link leads out of it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_core.tensor_headers import read_header
from mor_core.wire import WeightsFile, WeightsManifest
from mor_trainer.groups.replay_log import ReplayLog
from mor_trainer.update.loop_checkpoint import read_state
from mor_trainer.update.microbatch_limit import read_limit
from mor_trainer.weights.version_files import file_of, published_versions, read_manifest

RUN = "tiny-1a2b3c"
FILE = WeightsFile(name="model.safetensors", bytes=3, sha256="0" * 64)


def publish(runs: Path, version: int, manifest: WeightsManifest | bytes | None = None) -> Path:
    folder = runs / RUN / "weights" / str(version)
    folder.mkdir(parents=True)
    given = WeightsManifest(run=RUN, version=version, base="/m", kind="full", files=(FILE,), tensors={})
    content = manifest if isinstance(manifest, bytes) else (manifest or given).model_dump_json().encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / FILE.name).write_bytes(b"abc")
    return folder


def test_a_version_is_served_as_it_was_published(tmp_path: Path) -> None:
    folder = publish(tmp_path, 1)
    found = read_manifest(tmp_path / RUN, 1)
    assert found is not None
    assert found.files == (FILE,)
    assert file_of(tmp_path / RUN, 1, FILE) == folder / FILE.name


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 5000, b"\xff", b'{"run": "other"}', b" " * (33 << 20)])
def test_a_manifest_that_does_not_fit_is_not_there(tmp_path: Path, content: bytes) -> None:
    publish(tmp_path, 1, content)
    publish(tmp_path, 2)
    assert read_manifest(tmp_path / RUN, 1) is None
    assert read_manifest(tmp_path / RUN, 2) is not None


def test_a_manifest_of_another_version_or_with_a_path_is_not_there(tmp_path: Path) -> None:
    other = WeightsManifest(run=RUN, version=7, base="/m", kind="full", files=(), tensors={})
    publish(tmp_path, 1, other)
    evil = other.model_copy(update={"version": 2}).model_dump(mode="json")
    evil["files"] = [{"name": "../../evil", "bytes": 1, "sha256": "0" * 64}]
    publish(tmp_path, 2, json.dumps(evil).encode())
    assert [read_manifest(tmp_path / RUN, version) for version in (1, 2)] == [None, None]


def test_links_are_not_served(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(b"abc")
    folder = publish(tmp_path, 1)
    (folder / FILE.name).unlink()
    (folder / FILE.name).symlink_to(outside)
    assert file_of(tmp_path / RUN, 1, FILE) is None
    moved = tmp_path / "elsewhere"
    publish(tmp_path, 2).rename(moved)
    (tmp_path / RUN / "weights" / "2").symlink_to(moved)
    assert read_manifest(tmp_path / RUN, 2) is None
    (folder / FILE.name).unlink()
    (folder / FILE.name).write_bytes(b"longer")
    assert file_of(tmp_path / RUN, 1, FILE) is None


def test_folders_that_are_no_versions_are_ignored(tmp_path: Path) -> None:
    publish(tmp_path, 3)
    for name in ("²", "-1", "x", "1" * 40, "٣"):
        (tmp_path / RUN / "weights" / name).mkdir()
    assert published_versions(tmp_path / RUN) == [3]


@pytest.mark.parametrize("content", [b"", b"{", b'{"micro_batch_tokens": 0}', b'{"micro_batch_tokens": 1e400}'])
def test_a_limit_that_does_not_fit_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "memory.json").write_bytes(content)
    assert read_limit(tmp_path, 256) == 256


def test_a_manifest_that_lists_a_file_twice_is_not_there(tmp_path: Path) -> None:
    twice = WeightsManifest(run=RUN, version=1, base="/m", kind="full", files=(FILE,), tensors={}).model_dump(
        mode="json"
    )
    twice["files"] *= 2
    publish(tmp_path, 1, json.dumps(twice).encode())
    assert read_manifest(tmp_path / RUN, 1) is None


def spoil_by_link(file: Path) -> None:
    file.rename(file.parent.parent / "moved")
    file.symlink_to(file.parent.parent / "moved")


def spoil_by_size(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(1 << 40)


def spoil_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("spoil", [spoil_by_link, spoil_by_size, spoil_by_pipe])
def test_files_that_are_not_plain_are_not_read(
    tmp_path: Path, spoil: Callable[[Path], None], request: pytest.FixtureRequest
) -> None:
    """State of a checkpoint, limit of micro-batches, replay log: links, sparse files of a terabyte, pipes."""
    checkpoint, record = tmp_path / "step-00000001", tmp_path / "record"
    for folder, name in ((checkpoint, "state.json"), (record, "step-00000001.json"), (tmp_path, "memory.json")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text('{"micro_batch_tokens": 7}')
    assert read_limit(tmp_path, 256) == 7
    request.addfinalizer(lambda: (tmp_path.parent / "moved").unlink(missing_ok=True))
    for file in (checkpoint / "state.json", record / "step-00000001.json", tmp_path / "memory.json"):
        spoil(file)
    assert read_limit(tmp_path, 256) == 256
    plain = "link|regular file|at most"
    with pytest.raises(Invalid, match=plain):
        read_state(checkpoint)
    with pytest.raises(Invalid, match=plain):
        ReplayLog(tmp_path).read(1)


def test_a_link_anywhere_in_a_checkpoint_keeps_it_from_being_read(tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "shard.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match="is a link"):
        read_state(tmp_path / "step")
    (tmp_path / "linked").symlink_to(tmp_path / "step")
    with pytest.raises(Invalid, match="is a link"):
        read_state(tmp_path / "linked")


HEADERS = [
    {"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}},
    {"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    {"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"t": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}},
    {"t": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}},
    {"t": {"dtype": 1, "shape": [1], "data_offsets": [0, 4]}},
    {"t": [0, 4]},
]


@pytest.mark.parametrize("header", [json.dumps(header).encode() for header in HEADERS] + [b"[" * 50_000, b"\xff", b"1"])
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"abcd")
    with pytest.raises(Invalid, match="not a safetensors file"):
        read_header(file)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64))
def test_no_bytes_raise_another_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    for prefix in (b"", struct.pack("<Q", len(content)), struct.pack("<Q", 2**63)):
        file.write_bytes(prefix + content)
        try:
            read_header(file)
        except Invalid:
            continue
