"""On the trainer's machine the files of a version are linked, and verified as pulled ones are."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mor_core.wire import WeightsRef
from mor_rollout.config import RolloutSettings
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import WeightsStore

from tests.rollout.publisher import Publisher
from tests.rollout.reference import base_tensors, moved

pytestmark = pytest.mark.anyio
FILE = "model.safetensors"


@pytest.fixture
def ref(publisher: Publisher, tiny_vlm: Path) -> WeightsRef:
    return publisher.publish("run", 1, moved(base_tensors(tiny_vlm), 1))


@pytest.fixture
def source(publisher: Publisher, ref: WeightsRef, tmp_path: Path) -> Path:
    """The version's file in the folder of all runs."""
    folder = tmp_path / "runs" / "run" / "weights"
    shutil.copytree(tmp_path / "published" / "run", folder)
    return folder / "1" / FILE


@pytest.fixture
async def near(settings: RolloutSettings, base: BaseCheckpoint, tmp_path: Path) -> AsyncIterator[WeightsStore]:
    """Store on the trainer's machine."""
    store = WeightsStore(
        settings.model_copy(update={"weights_dir": tmp_path / "cache", "runs_dir": tmp_path / "runs"}), base
    )
    yield store
    await store.aclose()


def files_of(publisher: Publisher) -> int:
    """Return how often the version's file was requested."""
    return [path for path, _ in publisher.requests].count(f"/v1/runs/run/weights/1/{FILE}")


async def test_a_file_on_this_machine_is_linked(
    near: WeightsStore, publisher: Publisher, ref: WeightsRef, source: Path
) -> None:
    prepared = await near.pull("run", ref)
    assert prepared.folder is not None
    assert (prepared.folder / FILE).samefile(source)
    assert files_of(publisher) == 0
    shutil.rmtree(source.parent)  # the trainer deletes old versions
    assert (await near.pull("run", ref)).digest == prepared.digest


def damage(source: Path, fault: str, elsewhere: Path) -> None:
    content = source.read_bytes()
    source.unlink()
    if fault == "link":
        source.symlink_to(elsewhere)
    elif fault == "flipped":
        source.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "truncated":
        source.write_bytes(content[:-10])


@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing", "link"])
async def test_a_file_that_cannot_be_linked_is_pulled(
    near: WeightsStore, publisher: Publisher, ref: WeightsRef, source: Path, tmp_path: Path, fault: str
) -> None:
    published = tmp_path / "published" / "run" / "1" / FILE
    damage(source, fault, published)
    prepared = await near.pull("run", ref)
    assert prepared.folder is not None
    assert (prepared.folder / FILE).read_bytes() == published.read_bytes()
    assert not (prepared.folder / FILE).is_symlink()
    assert files_of(publisher) == 1


async def test_a_linked_file_of_an_interrupted_pull_is_never_written(
    near: WeightsStore, ref: WeightsRef, source: Path, settings: RolloutSettings, base: BaseCheckpoint, tmp_path: Path
) -> None:
    prepared = await near.pull("run", ref)
    assert prepared.folder is not None
    prepared.folder.rename(prepared.folder.with_suffix(".part"))
    truncated = (tmp_path / "published" / "run" / "1" / FILE).read_bytes()[:-10]
    (source.parent / FILE).write_bytes(truncated)  # a download would be appended to it
    far = WeightsStore(settings.model_copy(update={"weights_dir": prepared.folder.parent}), base)
    again = await far.pull("run", ref)
    await far.aclose()
    assert again.folder is not None
    assert len((again.folder / FILE).read_bytes()) == len(truncated) + 10
    assert (source.parent / FILE).read_bytes() == truncated


async def test_a_link_needs_no_room(
    near: WeightsStore, ref: WeightsRef, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mor_core.disk_full.free_bytes", lambda folder: 0)
    prepared = await near.pull("run", ref)
    assert prepared.folder is not None
    assert (prepared.folder / FILE).samefile(source)
