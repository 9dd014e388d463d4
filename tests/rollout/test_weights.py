"""Weights that cannot be downloaded or differ from their manifest never reach the engine."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mor_core.disk_full import DiskFull
from mor_core.errors import Invalid
from mor_core.weight_checksums import file_checksum
from mor_core.wire import WeightsFile, WeightsRef
from mor_rollout.config import RolloutSettings
from mor_rollout.weights import checkpoint_files
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.download import WeightsDamaged, WeightsError
from mor_rollout.weights.pull import WeightsStore
from mor_rollout.weights.weights_room import WeightsRoom
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tests.rollout import publisher as publisher_module
from tests.rollout.publisher import CutShort, Fault, Halted, Publisher, Silence
from tests.rollout.reference import base_tensors, moved
from tests.small_files import largest_file

pytestmark = pytest.mark.anyio
FILE = "model.safetensors"


@pytest.fixture
def ref(publisher: Publisher, tiny_vlm: Path) -> WeightsRef:
    return publisher.publish("run", 1, moved(base_tensors(tiny_vlm), 1))


def leftovers(store: WeightsStore) -> list[str]:
    return [entry.name for entry in store._folder.iterdir() if entry.suffix != ".part"]


def times(count: int, response: Response) -> Fault:
    """Respond ``count`` times, then let requests through."""
    left = count

    def fault(_: Request) -> Response | None:
        nonlocal left
        left -= 1
        return response if left >= 0 else None

    return fault


@pytest.mark.parametrize(
    ("path", "answer", "message", "damaged"),
    [
        ("", Response(status_code=404), r"answered 404; check that the version is published", True),
        ("", HTMLResponse("<html>Welcome</html>"), r"not a weights manifest", False),
        ("", Response(status_code=401), r"answered 401; .*service token", False),
        ("/" + FILE, Response(status_code=404), r"model.safetensors answered 404", True),
        ("/" + FILE, HTMLResponse("<html>Welcome</html>"), r"received \d+ bytes, the manifest lists", False),
    ],
)
async def test_responses_that_are_no_weights_are_refused(
    store: WeightsStore,
    publisher: Publisher,
    ref: WeightsRef,
    path: str,
    answer: Response,
    message: str,
    damaged: bool,
) -> None:
    """``damaged``: the trainer must publish the version again; an outage or a wrong address gives no reason to."""
    publisher.faults[f"/v1/runs/run/weights/1{path}"] = lambda _: answer
    with pytest.raises(WeightsError, match=message) as refused:
        await store.pull("run", ref)
    assert isinstance(refused.value, WeightsDamaged) == damaged
    assert not leftovers(store)


async def test_a_trainer_that_never_responds_is_an_error_in_time(
    settings: RolloutSettings, base: BaseCheckpoint, publisher: Publisher, ref: WeightsRef, tmp_path: Path
) -> None:
    publisher.faults["/v1/runs/run/weights/1"] = lambda _: Silence()
    store = WeightsStore(settings.model_copy(update={"weights_dir": tmp_path, "pull_timeout_s": 0.5}), base)
    with pytest.raises(WeightsError, match=r"no complete answer in 0.5 s.*MOR_PULL_TIMEOUT_S"):
        await store.pull("run", ref)
    await store.aclose()


async def test_a_download_that_fails_when_nobody_waits_any_more_is_no_error_of_the_loop(
    settings: RolloutSettings, base: BaseCheckpoint, publisher: Publisher, ref: WeightsRef, tmp_path: Path
) -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    publisher.faults["/v1/runs/run/weights/1"] = lambda _: Silence()
    store = WeightsStore(settings.model_copy(update={"weights_dir": tmp_path, "pull_timeout_s": 0.5}), base)
    waiting = asyncio.create_task(store.pull("run", ref))
    await asyncio.sleep(0.05)
    (download,) = store._pulls.values()
    waiting.cancel()
    ended, _ = await asyncio.wait([waiting, download], timeout=20)
    assert len(ended) == 2
    await store.aclose()
    del waiting, download, ended  # asyncio reports an error that nobody took when the task goes
    gc.collect()
    assert reported == []


async def test_an_address_without_a_server_is_an_error(store: WeightsStore) -> None:
    with pytest.raises(WeightsError, match=r"weights run version 1: http://127\.0\.0\.1:\d+"):
        await store.pull("run", WeightsRef(version=1))


async def test_server_errors_are_tried_again(store: WeightsStore, publisher: Publisher, ref: WeightsRef) -> None:
    publisher.faults["/v1/runs/run/weights/1"] = times(2, Response(status_code=503))
    assert (await store.pull("run", ref)).version == 1


async def test_a_broken_download_resumes_where_it_stopped(
    store: WeightsStore, publisher: Publisher, ref: WeightsRef, tmp_path: Path
) -> None:
    content = (tmp_path / "published" / "run" / "1" / FILE).read_bytes()
    publisher.faults[f"/v1/runs/run/weights/1/{FILE}"] = times(1, CutShort(content))
    prepared = await store.pull("run", ref)
    assert (prepared.folder / FILE).read_bytes() == content
    whole, rest = (header for path, header in publisher.requests if path.endswith(FILE))
    assert whole is None
    assert rest is not None
    assert 0 < int(rest.removeprefix("bytes=").removesuffix("-")) <= len(content) // 2


async def test_a_damaged_file_is_downloaded_again(
    store: WeightsStore, publisher: Publisher, ref: WeightsRef, tmp_path: Path
) -> None:
    content = (tmp_path / "published" / "run" / "1" / FILE).read_bytes()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    publisher.faults[f"/v1/runs/run/weights/1/{FILE}"] = times(1, Response(damaged))
    prepared = await store.pull("run", ref)
    assert (prepared.folder / FILE).read_bytes() == content


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied", "missing"])
async def test_a_version_that_is_damaged_on_this_machine_is_downloaded_again(
    store: WeightsStore, ref: WeightsRef, how: str
) -> None:
    """As after the crash of a node, or on a failing disk: otherwise every group of the version would fail."""
    kept = (await store.pull("run", ref)).folder
    assert kept is not None
    content = (kept / FILE).read_bytes()
    damaged = {"truncated": content[:-100], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "emptied": b""}
    if how == "missing":
        (kept / FILE).unlink()
    else:
        (kept / FILE).write_bytes(damaged[how])
    assert ((await store.pull("run", ref)).folder, (kept / FILE).read_bytes()) == (kept, content)


@pytest.fixture
def former_publisher(tmp_path: Path, tiny_vlm: Path) -> Iterator[Publisher]:
    """A trainer of the release before, whose checksums are SHA-256."""
    publisher = Publisher(tmp_path / "published", tiny_vlm, "sha256")
    yield publisher
    publisher.close()


async def test_versions_of_the_former_release_are_read(
    store: WeightsStore, former_publisher: Publisher, tiny_vlm: Path, tmp_path: Path
) -> None:
    ref = former_publisher.publish("run", 1, moved(base_tensors(tiny_vlm), 1))
    content = (tmp_path / "published" / "run" / "1" / FILE).read_bytes()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    former_publisher.faults[f"/v1/runs/run/weights/1/{FILE}"] = times(1, Response(damaged))
    kept = (await store.pull("run", ref)).folder
    assert kept is not None
    assert (kept / FILE).read_bytes() == content
    (kept / FILE).write_bytes(damaged)
    assert ((await store.pull("run", ref)).folder, (kept / FILE).read_bytes()) == (kept, content)
    former_publisher.faults[f"/v1/runs/run/weights/2/{FILE}"] = lambda _: Response(damaged)
    with pytest.raises(WeightsDamaged, match=r"SHA-256 is [0-9a-f]{64}, the manifest lists"):
        await store.pull("run", former_publisher.publish("run", 2, moved(base_tensors(tiny_vlm), 1)))


async def test_a_wrong_checksum_is_refused(store: WeightsStore, publisher: Publisher, ref: WeightsRef) -> None:
    path = "/v1/runs/run/weights/1"
    manifest = publisher.manifests[path]
    wrong = manifest.files[0].model_copy(update={"blake3": "0" * 64})
    publisher.manifests[path] = manifest.model_copy(update={"files": (wrong,)})
    with pytest.raises(WeightsDamaged, match=r"BLAKE3 is [0-9a-f]{64}, the manifest lists 0{64}"):
        await store.pull("run", ref)
    assert not leftovers(store)


async def test_tensors_must_be_those_of_the_manifest(
    store: WeightsStore, publisher: Publisher, ref: WeightsRef
) -> None:
    path = "/v1/runs/run/weights/1"
    manifest = publisher.manifests[path]
    info = manifest.tensors["lm_head.weight"].model_copy(update={"blake3": "0" * 64})
    publisher.manifests[path] = manifest.model_copy(update={"tensors": {**manifest.tensors, "lm_head.weight": info}})
    with pytest.raises(WeightsError, match=r"tensor 'lm_head.weight' differs from the manifest"):
        await store.pull("run", ref)
    publisher.manifests[path] = manifest.model_copy(update={"tensors": {}})
    with pytest.raises(WeightsError, match=r"is not listed"):
        await store.pull("run", ref)


async def test_bytes_after_the_tensors_are_refused_before_the_engine_reads_them(
    store: WeightsStore, publisher: Publisher, ref: WeightsRef, tmp_path: Path
) -> None:
    path, file = "/v1/runs/run/weights/1", tmp_path / "published" / "run" / "1" / FILE
    with file.open("ab") as longer:
        longer.write(b"more")
    listed = WeightsFile(name=FILE, bytes=file.stat().st_size, blake3=file_checksum(file, "blake3").hexdigest())
    publisher.manifests[path] = publisher.manifests[path].model_copy(update={"files": (listed,)})
    with pytest.raises(WeightsDamaged, match=r"its header gives \d+"):
        await store.pull("run", ref)
    assert not leftovers(store)


async def test_tensors_must_fit_the_base(store: WeightsStore, publisher: Publisher, tiny_vlm: Path) -> None:
    head = base_tensors(tiny_vlm)["lm_head.weight"]
    with pytest.raises(WeightsError, match=r"the base has no tensor 'head'; publish tensors under"):
        await store.pull("run", publisher.publish("run", 2, {"head": head}))
    with pytest.raises(WeightsError, match=r"'lm_head.weight' has shape \(320, 128\), the base's has \(640, 128\)"):
        await store.pull("run", publisher.publish("run", 3, {"lm_head.weight": head[:320]}))


async def test_a_manifest_must_be_of_the_run_and_version(
    store: WeightsStore, publisher: Publisher, ref: WeightsRef
) -> None:
    publisher.manifests["/v1/runs/other/weights/1"] = publisher.manifests["/v1/runs/run/weights/1"]
    with pytest.raises(WeightsError, match=r"the manifest is of run 'run' version 1"):
        await store.pull("other", ref)


async def test_the_service_token_goes_to_run_control_alone(
    store: WeightsStore, publisher: Publisher, ref: WeightsRef
) -> None:
    """A record names no address, and a redirect is not followed."""
    named = WeightsRef.model_validate({"version": 1, "url": "http://127.0.0.1:9/elsewhere"})
    assert named == ref
    seen: list[str | None] = []

    def redirected(request: Request) -> Response:
        seen.append(request.headers.get("authorization"))
        return RedirectResponse(f"{publisher_module.URL}/caught")

    publisher.faults["/v1/runs/run/weights/1"] = redirected
    with pytest.raises(WeightsError, match=r"follows no redirect: set MOR_CONTROL_URL"):
        await store.pull("run", ref)
    assert seen == ["Bearer secret"]
    assert [path for path, _ in publisher.requests] == ["/v1/runs/run/weights/1"]


async def test_file_names_cannot_leave_the_folder(store: WeightsStore, publisher: Publisher, ref: WeightsRef) -> None:
    path = "/v1/runs/run/weights/1"
    manifest = publisher.manifests[path]
    evil = manifest.files[0].model_copy(update={"name": "../../evil"})
    publisher.manifests[path] = manifest.model_copy(update={"files": (evil,)})
    with pytest.raises(WeightsError, match=r"not a weights manifest \(files.0.name"):
        await store.pull("run", ref)


async def test_the_cache_is_bounded(store: WeightsStore, publisher: Publisher, tiny_vlm: Path) -> None:
    tensors = base_tensors(tiny_vlm)
    for version in range(1, 7):
        await store.pull("run", publisher.publish("run", version, moved(tensors, version, "lm_head")))
    assert len(leftovers(store)) == 3


async def test_a_download_outlives_others_that_remove_old_versions(
    store: WeightsStore, publisher: Publisher, ref: WeightsRef, tiny_vlm: Path, tmp_path: Path
) -> None:
    content = (tmp_path / "published" / "run" / "1" / FILE).read_bytes()
    go_on = threading.Event()
    publisher.faults[f"/v1/runs/run/weights/1/{FILE}"] = times(1, Halted(content, go_on))
    slow = asyncio.create_task(store.pull("run", ref))
    tensors = base_tensors(tiny_vlm)
    for version in range(1, 6):
        await store.pull("other", publisher.publish("other", version, moved(tensors, version, "lm_head")))
    go_on.set()
    prepared = await slow
    assert prepared.folder is not None
    assert (prepared.folder / FILE).read_bytes() == content
    assert [path for path, _ in publisher.requests].count(f"/v1/runs/run/weights/1/{FILE}") == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", r"no such folder; give the path of a checkpoint folder or a hub name"),
        ("nothing", r"no such folder"),
    ],
)
def test_a_wrong_checkpoint_path(model: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        BaseCheckpoint(model)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"has no config.json"):
        BaseCheckpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Invalid, match=r"has no \*.safetensors; save it with save_pretrained"):
        BaseCheckpoint(str(tmp_path))
    (tmp_path / FILE).write_bytes(b"not tensors")
    with pytest.raises(Invalid, match=r"not a safetensors file"):
        BaseCheckpoint(str(tmp_path))


def test_a_copy_of_the_base_is_the_same_base(base: BaseCheckpoint, tiny_vlm: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_vlm, copy)
    assert base.is_same(str(copy))
    with (copy / FILE).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert not base.is_same(str(tmp_path))
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    assert not base.is_same(str(other))
    endless = tmp_path / "endless"
    endless.mkdir()
    with (endless / FILE).open("wb") as file:
        file.truncate(1 << 42)  # sparse; to hash it would take hours
    assert not base.is_same(str(endless))


def test_load_units_contain_the_tensors_that_engines_fuse() -> None:
    names = ["a.layers.0.q.weight", "a.layers.0.k.weight", "a.layers.1.q.weight", "a.norm.weight", "a.norm.bias", "h.w"]
    assert list(checkpoint_files.with_load_units(names, ["a.layers.0.k.weight"])) == names[:2]
    assert list(checkpoint_files.with_load_units(names, ["a.norm.bias"])) == names[3:5]


async def test_a_full_disk_is_told_and_versions_that_nobody_uses_make_room(
    store: WeightsStore, publisher: Publisher, tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = base_tensors(tiny_vlm)
    older = [await store.pull("run", publisher.publish("run", version, moved(tensors, version))) for version in (1, 2)]
    ref = publisher.publish("run", 3, moved(tensors, 3))
    with largest_file(1 << 20), pytest.raises(DiskFull, match="the disk became full"):
        await store.pull("run", ref, in_use=older[1].folder)
    assert REGISTRY.get_sample_value("mor_disk_full", {"writer": "pulled weights"}) == 1

    size = sum(file.stat().st_size for folder in store._folder.iterdir() for file in folder.iterdir())

    def free(folder: Path) -> int:
        """Return the free bytes of a disk that holds two versions and a part of one."""
        del folder
        used = sum(file.stat().st_size for one in store._folder.iterdir() for file in one.iterdir())
        return size - used

    monkeypatch.setattr("mor_core.disk_full.free_bytes", free)
    prepared = await store.pull("run", ref, in_use=older[1].folder)
    assert prepared.folder is not None
    assert {older[1].folder, prepared.folder} == set(store._folder.iterdir())
    assert REGISTRY.get_sample_value("mor_disk_full", {"writer": "pulled weights"}) == 0
    with pytest.raises(DiskFull, match="set MOR_WEIGHTS_DIR to another folder"):
        monkeypatch.setattr("mor_core.disk_full.free_bytes", lambda folder: 0)
        await store.pull("run", publisher.publish("run", 4, moved(tensors, 4)), in_use=prepared.folder)


async def test_a_limit_of_the_volume_counts_as_its_disk(
    settings: RolloutSettings, base: BaseCheckpoint, publisher: Publisher, tiny_vlm: Path, tmp_path: Path
) -> None:
    """An emptyDir with a sizeLimit shows the disk of its node, and its pod is evicted beyond the limit."""
    tensors = base_tensors(tiny_vlm)
    size = sum(tensor.nbytes for tensor in tensors.values())
    limited = settings.model_copy(update={"weights_dir": tmp_path / "limited", "weights_bytes": int(2.5 * size)})
    room = WeightsRoom(limited)
    assert room.total() == int(2.5 * size)
    store = WeightsStore(limited, base)
    in_use = None
    for version in (1, 2, 3):
        in_use = (
            await store.pull("run", publisher.publish("run", version, moved(tensors, version)), in_use=in_use)
        ).folder
        assert room.free() >= 0
    assert len(list(limited.weights_dir.iterdir())) == 2, "the one in use and the one before"
    await store.aclose()
    store = WeightsStore(limited.model_copy(update={"weights_bytes": size // 2}), base)
    with pytest.raises(DiskFull, match="raise MOR_WEIGHTS_BYTES where it is the limit"):
        await store.pull("run", publisher.publish("run", 4, moved(tensors, 4)))
    await store.aclose()
