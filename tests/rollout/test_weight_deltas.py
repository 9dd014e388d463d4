"""A delta is pulled where its base is on this machine; whatever is wrong with it, the engine gets the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mor_core.wire import WeightsRef
from mor_rollout.config import RolloutSettings
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import WeightsStore
from prometheus_client import REGISTRY
from starlette.responses import Response

from tests.rollout.publisher import Publisher
from tests.rollout.reference import base_tensors, moved

pytestmark = pytest.mark.anyio
FILE = "model.safetensors"


@pytest.fixture
async def refs(publisher: Publisher, tiny_vlm: Path) -> list[WeightsRef]:
    """Two versions; few values differ, and the second has a delta against the first."""
    tensors = moved(base_tensors(tiny_vlm), 1)
    torch.manual_seed(0)
    later = {
        name: torch.where(torch.rand(tensor.shape) < 0.01, tensor + 0.5, tensor) for name, tensor in tensors.items()
    }
    return [publisher.publish("run", 1, tensors), publisher.publish("run", 2, later, delta_from=1)]


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("mor_rollout_weight_deltas_total", {"outcome": outcome}) or 0.0


def files_of(publisher: Publisher, version: int) -> list[str]:
    """Return the files of a version that were requested."""
    start = f"/v1/runs/run/weights/{version}/"
    return [path.removeprefix(start) for path, _ in publisher.requests if path.startswith(start)]


def content_of(folder: Path | None) -> dict[str, bytes]:
    assert folder is not None
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_a_version_is_made_of_the_one_before_and_a_delta(
    store: WeightsStore, publisher: Publisher, refs: list[WeightsRef], tmp_path: Path
) -> None:
    used = counted("used")
    first, second = [await store.pull("run", ref) for ref in refs]
    assert content_of(second.folder) == {FILE: (tmp_path / "published" / "run" / "2" / FILE).read_bytes()}
    assert files_of(publisher, 2) == ["model.delta"]
    assert counted("used") == used + 1
    assert (first.digest == second.digest, first.tensors.keys()) == (False, second.tensors.keys())
    assert (tmp_path / "published" / "run" / "2" / "model.delta").stat().st_size < 0.05 * (
        tmp_path / "published" / "run" / "2" / FILE
    ).stat().st_size


async def test_an_engine_without_the_base_pulls_the_whole_version(
    store: WeightsStore, publisher: Publisher, refs: list[WeightsRef], tmp_path: Path
) -> None:
    second = await store.pull("run", refs[1])
    assert content_of(second.folder) == {FILE: (tmp_path / "published" / "run" / "2" / FILE).read_bytes()}
    assert files_of(publisher, 2) == [FILE]


async def test_a_service_that_started_again_pulls_the_whole_version(
    settings: RolloutSettings, base: BaseCheckpoint, store: WeightsStore, publisher: Publisher, refs: list[WeightsRef]
) -> None:
    """It has not verified what an earlier process left."""
    await store.pull("run", refs[0])
    again = WeightsStore(settings.model_copy(update={"weights_dir": store._folder}), base)
    await again.pull("run", refs[1])
    await again.aclose()
    assert files_of(publisher, 2) == [FILE]


def gone(publisher: Publisher, base: Path) -> None:
    publisher.faults["/v1/runs/run/weights/2/model.delta"] = lambda _: Response(status_code=404)


def replaced(publisher: Publisher, base: Path) -> None:
    publisher.faults["/v1/runs/run/weights/2/model.delta"] = lambda _: Response(b"not the delta")


def of_another_base(publisher: Publisher, base: Path) -> None:
    """The base is damaged on this machine after it was verified."""
    content = bytearray((base / FILE).read_bytes())
    content[-1] ^= 1
    (base / FILE).write_bytes(content)


def without_base(publisher: Publisher, base: Path) -> None:
    shutil.rmtree(base)


def no_tensors(publisher: Publisher, base: Path) -> None:
    (base / FILE).write_bytes(b"\1\0\0\0\0\0\0\0{")


@pytest.mark.parametrize("fault", [gone, replaced, of_another_base, without_base, no_tensors])
async def test_whatever_is_wrong_with_a_delta_the_whole_version_is_pulled(
    store: WeightsStore,
    publisher: Publisher,
    refs: list[WeightsRef],
    tmp_path: Path,
    fault: Callable[[Publisher, Path], None],
) -> None:
    first = await store.pull("run", refs[0])
    assert first.folder is not None
    fault(publisher, first.folder)
    second = await store.pull("run", refs[1])
    assert content_of(second.folder) == {FILE: (tmp_path / "published" / "run" / "2" / FILE).read_bytes()}
    assert files_of(publisher, 2)[-1] == FILE
    assert files_of(publisher, 2).count("model.delta") <= 2, "the whole version is not kept waiting"
    assert not list(store._folder.glob("*.part"))


async def test_what_an_interrupted_delta_left_is_no_part_of_the_version(
    settings: RolloutSettings, base: BaseCheckpoint, store: WeightsStore, publisher: Publisher, refs: list[WeightsRef]
) -> None:
    """The process that starts again has no base, and pulls the whole version."""
    second = (await store.pull("run", refs[1])).folder
    assert second is not None
    content = content_of(second)
    second.rename(second.with_suffix(".part"))
    for name in ("model.delta", ".made-" + FILE, ".link-" + FILE):
        (second.with_suffix(".part") / name).write_bytes(b"unfinished")
    again = WeightsStore(settings.model_copy(update={"weights_dir": store._folder}), base)
    assert content_of((await again.pull("run", refs[1])).folder) == content
    await again.aclose()
