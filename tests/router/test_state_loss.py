"""A queue server that lost the router's state: what comes back by itself, and what a person is told."""

from __future__ import annotations

import asyncio
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from mor_core.errors import Invalid
from mor_core.run_announcements import announce
from mor_router import metrics
from mor_router.snapshots.saved_state import SavedState
from mor_router.snapshots.snapshot_folder import SnapshotFolder, read_snapshot
from mor_router.state_mark import read_mark
from mor_router.store import CLIENTS, OBJECTIVES, STATE, RouterSnapshot, export, key
from pydantic import SecretStr
from redis.asyncio import Redis
from typer.testing import CliRunner

from tests.conftest import Valkey
from tests.router.conftest import KEY, TOKENS, Api, Start, eventually
from tests.router.endpoints import TOKEN, Endpoints
from tests.router.planted import jsonl, rows
from tests.router.test_objectives import upload
from tests.router.test_reward_stage import all_of, count, publish, rollout, working

pytestmark = pytest.mark.anyio


def newest(folder: Path) -> SavedState | None:
    try:
        return SnapshotFolder(folder, 20).newest()
    except Invalid:  # all of them are damaged
        return None


def filled(snapshot: RouterSnapshot) -> dict[str, dict[str, str]]:
    return {name: fields for name, fields in snapshot.hashes.items() if fields}


async def saved(api: Api, folder: Path) -> SavedState:
    """Wait until a snapshot has the present state."""
    redis = api.router.resources.redis
    found: list[SavedState] = []

    async def is_saved() -> bool:
        last = await asyncio.to_thread(newest, folder)
        if last is None or filled(SnapshotFolder(folder, 20).whole(last)) != filled(await export(redis)):
            return False
        found.append(last)
        return True

    await eventually(is_saved, 30)
    return found[-1]


async def fill(api: Api, endpoints: Endpoints) -> None:
    """Enrol two clients and a newcomer, and create an objective with a gate version."""
    for name, state in (("clinic", "active"), ("bank", "active"), ("newcomer", "probation")):
        await api.enrol(endpoints.endpoint(name), state=state)
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
    await api.router.resources.redis.hset(key("gates", "helpful"), "1", "{}")  # type: ignore[misc]


async def fit(api: Api, endpoints: Endpoints) -> dict[str, Any]:
    """Fit the objective on anchors with pictures, enrol one more newcomer, and return the reward of a group."""
    await upload(api, jsonl(rows(12)))
    await api.ok("POST", "/v1/objectives/helpful/fit")
    await api.enrol(endpoints.endpoint("later"), state="probation")
    judge = {"kind": "judge", "url": endpoints.address, "model": "wise", "token": TOKEN}
    await api.ok("PUT", "/v1/objectives/helpful/labeller", judge)
    return await api.reward("answer 1", "answer 2", objective="helpful")


def weights(reward: dict[str, Any]) -> list[tuple[str, str, float]]:
    return [(line["client"], line["status"], line["gate_weight"]) for line in reward["clients"]]


async def problem_of(api: Api) -> str:
    return str((await api.http.get("/readyz")).json()["missing"].get("router", ""))


async def test_a_flushed_server_gets_everything_back_and_nobody_enrols_anew(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api, start(router_state_dir=folder) as other:
        await fill(api, endpoints)
        before = await fit(api, endpoints)
        state = await export(redis)
        kept = await saved(api, folder)
        await eventually(lambda: asyncio.sleep(0, len(other.router.clients.pool.records) == 4))
        circuits = {name: api.router.clients.pool.client(name).circuit for name in ("clinic", "bank")}
        epoch = kept.mark.epoch

        await redis.flushall()
        during = await api.reward("answer 1", "answer 2", objective="helpful")
        assert (during["gate_version"], weights(during)) == (before["gate_version"], weights(before))

        async def is_back() -> bool:
            return await redis.hlen(CLIENTS) == 4  # type: ignore[misc]

        await eventually(is_back)
        await api.router.clients.pool.refresh()
        mark = await read_mark(redis)
        assert mark is not None
        assert (mark.epoch, mark.installation) == (epoch + 1, kept.mark.installation), "one replica restored it, once"
        after = await api.reward("answer 1", "answer 2", objective="helpful")
        assert (after["gate_version"], after["rewards"], weights(after)) == (
            before["gate_version"],
            before["rewards"],
            weights(before),
        )
        assert {name: api.router.clients.pool.client(name).circuit for name in circuits} == circuits
        restored = await export(redis)
        same = {name: fields for name, fields in restored.hashes.items() if name not in ("clients", "asked:helpful")}
        assert same == {name: state.hashes[name] for name in same}
        assert restored.versions == state.versions
        assert (await api.ok("GET", "/v1/clients/later"))["client"]["state"] == "probation"
        assert await problem_of(api) == ""
        assert (await api.ok("POST", "/v1/objectives/helpful/fit"))["version"] == before["gate_version"] + 1


async def test_a_server_that_restarts_without_its_folder_gets_everything_back(
    start: Start, endpoints: Endpoints, valkey: Valkey, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder, redis_url=SecretStr(valkey.url)) as api:
        await fill(api, endpoints)
        await saved(api, folder)
        valkey.kill()
        shutil.rmtree(tmp_path / "appendonlydir")
        valkey.start()

        async def is_back() -> bool:
            redis = api.router.resources.redis
            return await redis.hlen(CLIENTS) == 3  # type: ignore[misc]

        await eventually(is_back)
    async with start(router_state_dir=folder, redis_url=SecretStr(valkey.url)) as again:
        assert (await again.reward("answer 1", "answer 2", objective="helpful"))["status"] == "ok"


async def test_snapshots_hold_no_secret_in_the_clear_and_only_the_latest_are_kept(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder, router_state_keep=2) as api:
        await fill(api, endpoints)
        await upload(api, jsonl(rows(12)))
        await saved(api, folder)
        for reason in ("audit", "holiday"):
            await api.ok("PATCH", "/v1/clients/bank", {"state": "paused", "reason": reason})
            await saved(api, folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not any(secret.encode() in path.read_bytes() for path in files for secret in (TOKEN, KEY, *TOKENS.values()))
    assert len(list(folder.glob("*.json"))) == 2
    assert any((folder / "values").iterdir()), "pictures are stored once, apart"


async def test_an_earlier_version_leaves_a_state_that_is_kept(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    async with start() as api:
        await fill(api, endpoints)
    await redis.delete(STATE)  # which that version did not write
    async with start(router_state_dir=tmp_path / "state") as api:
        assert len((await saved(api, tmp_path / "state")).state.hashes["clients"]) == 3


async def test_a_new_installation_is_empty_and_ready(start: Start, redis: Redis, tmp_path: Path) -> None:
    async with start(router_state_dir=tmp_path / "state") as api:
        assert (await problem_of(api), await redis.hlen(CLIENTS)) == ("", 0)  # type: ignore[misc]
        assert metrics.ACTIVE_CLIENTS._value.get() == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_a_damaged_snapshot_is_set_aside_and_an_older_one_restored(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await fill(api, endpoints)
        await upload(api, jsonl(rows(12)))
        await saved(api, folder)
        await api.enrol(endpoints.endpoint("late"))
        await saved(api, folder)
    flip(sorted(folder.glob("*.json"))[-1])
    [*_, picture] = (folder / "values").iterdir()
    flip(picture)
    await redis.flushall()
    async with start(router_state_dir=folder) as api:
        assert set(api.router.clients.pool.records) == {"clinic", "bank", "newcomer"}
        assert len(list(folder.glob("*.json.damaged"))) == 1
        pictures = await redis.hlen(key("images", "helpful"))  # type: ignore[misc]
        assert pictures == len(list((folder / "values").iterdir())) - 1, "a damaged picture is missed alone"


async def test_without_a_snapshot_that_can_be_read_nothing_is_begun(
    start: Start, endpoints: Endpoints, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await fill(api, endpoints)
        await saved(api, folder)
        (tmp_path / "export.json").write_text((await export(redis)).model_dump_json())
    for path in folder.glob("*.json"):
        path.write_bytes(path.read_bytes()[:-10])
    await redis.flushall()
    async with start(router_state_dir=folder) as api:
        assert re.search(r"no snapshot in .* can be read, such as .*'mor-router import'", await problem_of(api))
        body = {"name": "new", "url": endpoints.endpoint("new").url, "domains": "tests", "token": TOKEN}
        refused = await api.call("POST", "/v1/clients", body)
        assert (refused.status_code, "being restored" in refused.text) == (503, True), "it would hide the loss"
        assert (await api.call("POST", "/v1/objectives", {"name": "o", "text": "Answer."})).status_code == 503
        environment = {"MOR_REDIS_URL": redis_url, "MOR_SECRET_KEY": KEY, "MOR_ROUTER_STATE_DIR": str(folder)}
        from mor_router.cli import app

        arguments = ["import", str(tmp_path / "export.json")]
        done = await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments, env=environment))
        assert done.exit_code == 0, done.output
        await eventually(lambda: asyncio.sleep(0, len(api.router.clients.pool.records) == 3))
        await eventually(lambda: asyncio.sleep(0, api.router.state_backup.problem is None))


async def test_another_key_is_named_and_restores_nothing(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await fill(api, endpoints)
        await saved(api, folder)
    await redis.flushall()
    async with start(router_state_dir=folder, secret_key=SecretStr(Fernet.generate_key().decode())) as api:
        assert "MOR_SECRET_KEY decrypts none of the 3 clients' secrets in the snapshot" in await problem_of(api)
        assert await redis.hlen(CLIENTS) == 0  # type: ignore[misc]
    async with start(router_state_dir=folder) as api:
        assert len(api.router.clients.pool.records) == 3


@pytest.mark.parametrize("lost", ["clients", "objectives", "gates:helpful", "state"])
async def test_a_part_that_is_lost_is_named_and_no_snapshot_replaced(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path, lost: str
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await fill(api, endpoints)
        whole = await saved(api, folder)
        await redis.delete(key(lost))

        async def is_named() -> bool:
            problem = await problem_of(api)
            named = lost in problem and "mor-router import --replace" in problem
            return named and metrics.STATE_PROBLEM._value.get() == 1

        await eventually(is_named)
        last = newest(folder)
        assert last is not None
        assert last.state.hashes.get("gates:helpful") == whole.state.hashes["gates:helpful"]
        assert len(last.state.hashes["clients"]) == 3
        if lost != "state":
            assert await redis.exists(key(lost)) == 0, "nothing is restored by itself"


async def test_removals_are_no_loss(start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await api.enrol(endpoints.endpoint("clinic"))
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
        await saved(api, folder)
        await api.ok("DELETE", "/v1/clients/clinic")
        await api.ok("DELETE", "/v1/objectives/helpful")
        await saved(api, folder)
        assert await problem_of(api) == ""
        await redis.flushall()
        await eventually(lambda: mark_exists(redis))
        assert await redis.hlen(CLIENTS) + await redis.hlen(OBJECTIVES) == 0  # type: ignore[misc]


async def mark_exists(redis: Redis) -> bool:
    return await read_mark(redis) is not None


async def test_a_server_that_lost_its_last_writes_is_named_and_the_snapshot_set_aside(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await api.enrol(endpoints.endpoint("clinic"))
        early = await saved(api, folder)
        await api.enrol(endpoints.endpoint("bank"))
        await saved(api, folder)
    # As a replica that took over without the latest writes has it:
    await redis.hdel(CLIENTS, "bank")  # type: ignore[misc]
    await redis.hset(STATE, "snapshot", str(early.mark.snapshot))  # type: ignore[misc]
    await redis.delete(key("leader", "snapshots"))  # instead of waiting until it expires
    async with start(router_state_dir=folder) as api:
        await eventually(lambda: asyncio.sleep(0, api.router.state_backup.warning is not None))
        assert "the queue server lost its last writes: clients bank" in str(api.router.state_backup.warning)
        [aside] = folder.glob("*.json.ahead")
        assert set(read_snapshot(aside).state.hashes["clients"]) == {"clinic", "bank"}
        assert await problem_of(api) == "", "it works with what there is"
        await saved(api, folder)
        aside.unlink()
        await eventually(lambda: asyncio.sleep(0, api.router.state_backup.warning is None))


async def test_snapshots_that_were_deleted_or_damaged_are_written_again(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await api.enrol(endpoints.endpoint("clinic"))
        await saved(api, folder)
        shutil.rmtree(folder)
        await saved(api, folder)
    for path in folder.glob("*.json"):
        flip(path)
    await redis.delete(key("leader", "snapshots"))  # instead of waiting until it expires
    async with start(router_state_dir=folder) as api:
        assert set((await saved(api, folder)).state.hashes["clients"]) == {"clinic"}
        assert await problem_of(api) == ""


async def test_the_folder_of_another_installation_is_left_alone(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await api.enrol(endpoints.endpoint("clinic"))
        await saved(api, folder)
    await redis.flushall()
    async with start() as api:  # begins another state
        await api.enrol(endpoints.endpoint("bank"))
    async with start(router_state_dir=folder) as api:
        await eventually(lambda: asyncio.sleep(0, "of another router" in str(api.router.state_backup.warning)))
        last = newest(folder)
        assert last is not None
        assert set(last.state.hashes["clients"]) == {"clinic"}


async def test_a_folder_that_cannot_be_written_is_a_warning_until_it_can(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "values").write_text("no folder")
    async with start(router_state_dir=folder) as api:
        await api.enrol(endpoints.endpoint("clinic"))
        await eventually(lambda: asyncio.sleep(0, "cannot be saved" in str(api.router.state_backup.warning)))
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
        (folder / "values").unlink()
        await saved(api, folder)
        await eventually(lambda: asyncio.sleep(0, api.router.state_backup.warning is None))


async def test_groups_of_a_run_have_the_same_weights_before_and_after_a_loss(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with working(start, run_name, router_state_dir=folder) as (api, side):
        for name in ("clinic", "bank", "lab"):
            await api.enrol(endpoints.endpoint(name))
        await saved(api, folder)
        scored: list[list[tuple[str, str, float]]] = []
        for number in range(1, 9):
            if number in (3, 6):
                await redis.flushall()
                await announce(redis, run_name, "model")  # as the training process does within seconds
            await publish(side, rollout(run_name, f"g{number}", ("answer 1", "answer 4")))
            expected = number - 5 if number > 5 else number - 2 if number > 2 else number
            await count(redis, run_name, rollouts=0, rewards=expected, dead=0)
            record = (await all_of(redis, run_name, "rewards"))[-1]
            scored.append([(line.client, line.status, line.weight) for line in record.clients])
        assert scored == [[(name, "ok", 1 / 3) for name in ("bank", "clinic", "lab")]] * 8
        assert len(api.router.clients.pool.records) == 3
        await eventually(lambda: mark_exists(redis))
        assert set(await redis.hkeys(CLIENTS)) == {b"clinic", b"bank", b"lab"}  # type: ignore[misc]
